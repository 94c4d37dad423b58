"""The answer on top of a comparison's page: the verdict in a sentence, and the best of each kind as cards."""

from __future__ import annotations

from markupsafe import Markup

from offramp.report.comparison_words import comparison_headline, left_over, not_claimed, passed_how
from offramp.report.findings import Finding, best_certified, comparison_decision, findings_of
from offramp.report.formats import counted, limits_text, percent, thousandths, times
from offramp.report.html import KeyNumber, Kind, fragment
from offramp.report.names import distinct, floor_shown, heads_name, line_name, machine_shown
from offramp.report.ranking import believed, fastest, replayed, why_no_answer
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison, Strategy
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import Speed


def answer_section(comparison: Comparison) -> Markup:
    """Headline, the sentences behind it, the best of each kind as cards, and what is not claimed."""
    return fragment(
        "comparison",
        "verdict",
        title=comparison.title,
        decision=comparison_decision(comparison),
        size=size_of(comparison),
        headline=comparison_headline(comparison),
        cards=cards_of(comparison),
        not_claimed=[*left_over(comparison), *not_claimed(comparison)],
    )


def size_of(comparison: Comparison) -> str:
    """ "9 models · 2 workloads · 1,920 tokens each"."""
    rows = comparison.rows
    models = distinct([row.model.shown for row in rows])
    workloads = distinct([row.workload for row in rows])
    tokens = sorted({row.card.tokens for row in rows})
    each = f"{tokens[0]:,} tokens each" if len(tokens) == 1 else "unequal numbers of tokens"
    parts = [counted(len(models), "model"), counted(len(workloads), "workload"), *([each] if tokens else [])]
    bases = distinct([row.model.base for row in rows])
    if len(bases) < len(models):
        parts.insert(1, f"{counted(len(bases), 'independent training')}")
    return " · ".join(parts)


def cards_of(comparison: Comparison) -> list[KeyNumber]:
    """The best certified, replayed and measured speed, and the most suited by score."""
    found, strategies = findings_of(comparison), comparison.strategies
    cards = []
    if found:
        cards.append(_certified_card(best_certified(found), len(found)))
    predicted = fastest(replayed(strategies))
    if predicted is not None:
        cards.append(_strategy_card("Fastest by replay", "predicted", predicted))
    if any(one.basis == "measured" for one in strategies):
        measured, title = fastest(believed(strategies)), "Fastest decoded for real"
        if measured is None:
            nothing = why_no_answer(strategies) or "no policy that exits was decoded"
            cards.append(KeyNumber("measured", "none", nothing, (), title))
        else:
            cards.append(_strategy_card(title, "measured", measured))
    return cards + _suited_card(comparison)


def _certified_card(best: Finding[Tuned] | None, asked: int) -> KeyNumber:
    title = "Best net speed that passed its floor"
    if best is None:
        said = f"no policy that exits early passed in {counted(asked, 'answer')}"
        return KeyNumber("predicted", "none", said, (), title)
    model, workload, machine = best.cell
    facts = {
        "model": model,
        "workload": workload,
        "machine": machine_shown(machine),
        "keeps": floor_shown(best.floor),
        "passed": passed_how(best),
    }
    kind: Kind = "measured" if best.timed else "predicted"
    return KeyNumber(kind, *_speed(best.speed), list(facts.items()), title, best.policy)


def _strategy_card(title: str, kind: Kind, found: Strategy) -> KeyNumber:
    place = found.place
    facts = {
        "model": line_name(place.model, place.heads),
        "workload": place.workload,
        "machine": machine_shown(place.machine),
        "floor": floor_shown(found.floor),
        "agreement": "–" if found.agreement.value is None else percent(found.agreement.value),
    }
    return KeyNumber(kind, *_speed(found.net_speedup), list(facts.items()), title, str(found.policy))


def _suited_card(comparison: Comparison) -> list[KeyNumber]:
    """The row with the highest composite; none without one."""
    known = [row for row in comparison.rows if row.card.composite.value is not None]
    if not known:
        return []
    best = max(known, key=lambda row: row.card.composite.value or 0.0)
    composite, skips = best.card.composite, best.card.saturation_skip.value
    facts = {
        "model": best.model.shown,
        "workload": best.workload,
        "exit heads": heads_name(best.heads),
        "oracle skips": "–" if skips is None else percent(skips),
    }
    limits = limits_text(composite.low, composite.high, thousandths)
    what = f"composite of 0 to 1{f', {limits}' if limits else ''}"
    big = thousandths(composite.value or 0.0)
    return [KeyNumber("measured", big, what, list(facts.items()), "Most suited by score")]


def _speed(speed: Speed | Estimate | None) -> tuple[str, str]:
    """A speed in large, and what it is over with its interval."""
    assert speed is not None, "the best has a speed"
    limits = limits_text(speed.low, speed.high, thousandths)
    without = ", no interval" if speed.low is None else ""
    return times(speed.value or 0.0), f"plain decoding{f', {limits}' if limits else without}"
