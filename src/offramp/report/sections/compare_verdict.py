"""The answer of a comparison: does early exit pay anywhere, by how much, and what is not claimed."""

from __future__ import annotations

from offramp.report.cells import decision_pill
from offramp.report.comparison_answers import (
    Answer,
    answers_of,
    believed,
    best_certified,
    fastest,
    overall_decision,
    replayed,
    why_no_answer,
)
from offramp.report.comparison_headline import headline, left_over, not_claimed, passed_how
from offramp.report.comparison_words import (
    distinct,
    floor_shown,
    heads_name,
    limits_text,
    line_name,
    machine_shown,
    thousandths,
)
from offramp.report.formats import counted, percent, times
from offramp.report.markup import Kind, bullets, element, kind_chip, policy_code, text
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison, Strategy


def verdict_section(comparison: Comparison) -> str:
    """Headline, the sentences behind it, the best of each kind as cards, and what is not claimed."""
    eyebrow = decision_pill(overall_decision(comparison)) + element("span", text(size_of(comparison)))
    content = (
        element("p", text(comparison.title), class_="study-title")
        + element("p", eyebrow, class_="eyebrow")
        + element("h1", text(headline(comparison)))
        + element("div", _cards(comparison), class_="keys")
        + _not_claimed(comparison)
    )
    return element("section", content, id_="verdict", aria_label="Answer")


def size_of(comparison: Comparison) -> str:
    """ "9 models · 2 workloads · 1,920 tokens each"."""
    rows = comparison.rows
    models = distinct([row.model.shown for row in rows])
    workloads = distinct([row.workload for row in rows])
    tokens = sorted({row.tokens for row in rows})
    each = f"{tokens[0]:,} tokens each" if len(tokens) == 1 else "unequal numbers of tokens"
    parts = [counted(len(models), "model"), counted(len(workloads), "workload"), *([each] if tokens else [])]
    bases = distinct([row.model.base for row in rows])
    if len(bases) < len(models):
        parts.insert(1, f"{counted(len(bases), 'independent training')}")
    return " · ".join(parts)


def _cards(comparison: Comparison) -> str:
    """The best certified, replayed and measured speed."""
    answers, strategies = answers_of(comparison), comparison.strategies
    cards = ""
    if answers:
        cards += _certified_card(best_certified(comparison), len(answers))
    found = fastest(replayed(strategies))
    if found is not None:
        cards += _strategy_card("Fastest by replay", "predicted", found)
    if any(one.basis == "measured" for one in strategies):
        measured = fastest(believed(strategies))
        if measured is None:
            nothing = why_no_answer(strategies) or "no policy that exits was decoded"
            cards += _card("Fastest decoded for real", "measured", "none", nothing)
        else:
            cards += _strategy_card("Fastest decoded for real", "measured", measured)
    return cards + _suited_card(comparison)


def _certified_card(best: Answer | None, asked: int) -> str:
    title = "Best net speed that passed its floor"
    if best is None:
        said = f"no policy that exits early passed in {counted(asked, 'answer')}"
        return _card(title, "predicted", "none", said)
    saving = best.saving
    facts = {
        "model": line_name(best.row.model.shown, best.row.heads),
        "workload": best.row.workload,
        "machine": machine_shown(saving.machine),
        "keeps": floor_shown(saving.floor),
        "passed": passed_how(best),
    }
    kind: Kind = "predicted" if best.timed is None else "measured"
    return _card(title, kind, *_speed(best.net_speedup), facts, saving.policy)


def _strategy_card(title: str, kind: Kind, found: Strategy) -> str:
    facts = {
        "model": line_name(found.model, found.heads),
        "workload": found.workload,
        "machine": machine_shown(found.machine),
        "floor": floor_shown(found.floor),
        "agreement": "–" if found.agreement.value is None else percent(found.agreement.value),
    }
    return _card(title, kind, *_speed(found.net_speedup), facts, found.policy)


def _suited_card(comparison: Comparison) -> str:
    """The row with the highest composite."""
    known = [row for row in comparison.rows if _composite(row.scores.get("composite")) is not None]
    if not known:
        return ""
    best = max(known, key=lambda row: row.scores["composite"].value or 0.0)
    composite = best.scores["composite"]
    facts = {
        "model": best.model.shown,
        "workload": best.workload,
        "exit heads": heads_name(best.heads),
        "oracle skips": _share(best.scores.get("saturation_skip")),
    }
    limits = limits_text(composite.low, composite.high, thousandths)
    what = f"composite of 0 to 1{f', {limits}' if limits else ''}"
    return _card("Most suited by score", "measured", thousandths(composite.value or 0.0), what, facts)


def _composite(estimate: Estimate | None) -> float | None:
    return None if estimate is None else estimate.value


def _share(estimate: Estimate | None) -> str:
    return "–" if estimate is None or estimate.value is None else percent(estimate.value)


def _speed(estimate: Estimate) -> tuple[str, str]:
    """A speed in large, and what it is over with its interval."""
    limits = limits_text(estimate.low, estimate.high, thousandths)
    without = ", no interval" if estimate.low is None else ""
    return times(estimate.value or 0.0), f"plain decoding{f', {limits}' if limits else without}"


def _card(
    title: str, kind: Kind, big: str, what: str, facts: dict[str, str] | None = None, policy: str = ""
) -> str:
    """One figure with what it belongs to."""
    content = element("p", text(title), class_="key-title") + element("p", text(big), class_="big")
    content += element("p", text(what) + " " + kind_chip(kind), class_="what")
    if facts:
        items = "".join(
            element("div", element("dt", text(name)) + element("dd", text(value)))
            for name, value in facts.items()
        )
        content += element("dl", items)
    if policy:
        content += element("p", policy_code(policy), class_="key-policy")
    return element("div", content, class_="key")


def _not_claimed(comparison: Comparison) -> str:
    said = [*left_over(comparison), *not_claimed(comparison)]
    if not said:
        return ""
    return element("div", element("h3", "What is not claimed") + bullets(said, ""), class_="caveats")
