"""The answer: the verdict in a sentence, three key numbers, the table of floors."""

from __future__ import annotations

from collections.abc import Callable

from offramp.policies.results import Decision, Verdict
from offramp.report.formats import (
    NumberFormat,
    decimal,
    estimate_text,
    faster,
    interval_text,
    listed,
    milliseconds,
    percent,
    range_text,
    times,
    whole_percent,
)
from offramp.report.headline import caveats, headline, main_verdict, overall_decision
from offramp.report.markup import KIND_MEANING, Kind, element, kind_chip, text
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.report.summary import predicted_seconds
from offramp.scoring.estimate import Estimate

ANSWER_TOKENS = 64

DECISION_SIGNS: dict[str, str] = {
    "pays": "✓",
    "does not pay": "✕",
    "too close to call": "≈",
    "depends on the text": "±",
    "undefined": "?",
}


def verdict_section(run: RunResult) -> str:
    """Everything a hurried reader needs."""
    decision = overall_decision(run)
    badge = element(
        "span", text(f"{DECISION_SIGNS[decision]} {decision}"), class_=f"decision {decision_class(decision)}"
    )
    where = (
        f"{run.model_name} · {run.layers} layers · {listed([w.name for w in run.workloads])} · one "
        "sequence at a time"
    )
    hero = (
        element("p", badge + element("span", text(where)), class_="eyebrow")
        + element("h1", text(headline(run)))
        + element("div", "".join(key_numbers(run)), class_="keys")
        + kinds_legend()
    )
    return element(
        "section", hero + floors_block(run) + caveat_list(run), id_="verdict", aria_label="The verdict"
    )


def decision_class(decision: str) -> str:
    """The CSS class of a decision."""
    return decision.replace(" ", "-")


def kinds_legend() -> str:
    """What measured, replayed and predicted mean on this page."""
    items = [element("li", kind_chip(kind) + " " + text(meaning)) for kind, meaning in KIND_MEANING.items()]
    return element("ul", "".join(items), class_="kinds")


def key_numbers(run: RunResult) -> list[str]:
    """Three figures: what a policy would gain, what an oracle could skip, what plain decoding takes."""
    return [gain_card(run), oracle_card(run), plain_card(run)]


def key_card(kind: Kind, big: str, what: str, lines: list[tuple[str, str]]) -> str:
    """One key number with its lines by workload."""
    rows = "".join(
        element("div", element("dt", text(name)) + element("dd", text(value))) for name, value in lines
    )
    return element(
        "div",
        kind_chip(kind)
        + element("p", text(big), class_="big")
        + element("p", text(what), class_="what")
        + element("dl", rows),
        class_="key",
    )


def gain_card(run: RunResult) -> str:
    """The predicted gain of the best policy at the main floor."""
    verdicts = [(workload.name, main_verdict(workload)) for workload in run.workloads]
    values = [v.net_speedup.value for _, v in verdicts if v is not None and v.net_speedup.value is not None]
    floors = [v.floor for _, v in verdicts if v is not None]
    floor = whole_percent(floors[0]) if floors else "95 %"
    lines = [(name, "no verdict" if verdict is None else gain_line(verdict)) for name, verdict in verdicts]
    what = f"faster decoding with the best policy at {floor} agreement, every probe paid for"
    return key_card("predicted", span_text(values, signed_change) or "undefined", what, lines)


def signed_change(speedup: float) -> str:
    """A speedup as a signed change in percent."""
    change = percent(speedup - 1)
    return change if change.startswith(("−", "0.0")) else f"+{change}"


def gain_line(verdict: Verdict) -> str:
    """One workload's gain in words."""
    if verdict.net_speedup.value is None:
        return f"undefined: {verdict.net_speedup.undefined or verdict.reason}"
    if verdict.policy == "never":
        return "best never to exit"
    interval = interval_text(verdict.net_speedup.low, verdict.net_speedup.high, signed_change)
    if verdict.net_speedup.low == verdict.net_speedup.high:
        return faster(verdict.net_speedup.value)
    return f"{faster(verdict.net_speedup.value)}{f' ({interval})' if interval else ''}"


def span_text(values: list[float], number: NumberFormat) -> str:
    """One number, or the lowest and highest."""
    if not values:
        return ""
    low, high = number(min(values)), number(max(values))
    return low if low == high else range_text(low, high)


def oracle_card(run: RunResult) -> str:
    """What an oracle that knows the final answer could skip."""
    estimates = [(workload.name, workload.card.saturation_skip) for workload in run.workloads]
    values = [estimate.value for _, estimate in estimates if estimate.value is not None]
    lines = [(name, estimate_text(estimate, percent)) for name, estimate in estimates]
    what = (
        "of the layers could be skipped by an oracle that knows when each answer is settled; no policy "
        "knows that"
    )
    return key_card("measured", span_text(values, percent) or "undefined", what, lines)


def plain_card(run: RunResult) -> str:
    """Seconds per token of plain decoding, or half-depth agreement where it was not timed."""
    plain = run.plain_seconds_per_token
    if plain is not None:
        interval = interval_text(plain.low, plain.high, milliseconds)
        lines = [("interval", interval or "none")]
        lines.append(("machine", f"{plain.threads} threads, load {decimal(plain.load, 1)}"))
        what = "per token for plain decoding on this machine, the time that early exit would have to beat"
        return key_card("measured", milliseconds(plain.value), what, lines)
    halves = [(workload.name, half_depth_agreement(workload)) for workload in run.workloads]
    values = [value for _, value in halves if value is not None]
    what = (
        "of tokens already have the full model's answer half-way through the layers (plain decoding "
        "was not timed)"
    )
    lines = [(name, "undefined" if value is None else percent(value)) for name, value in halves]
    return key_card("measured", span_text(values, percent) or "undefined", what, lines)


def half_depth_agreement(workload: WorkloadResult) -> float | None:
    """Agreement at the traced exit nearest to half of the layers."""
    curves = workload.card.curves
    if "agreement" not in curves.values:
        return None
    nearest = abs(curves.exits - curves.exits[-1] / 2).argmin()
    return float(curves.values["agreement"][nearest])


def floors_block(run: RunResult) -> str:
    """The verdicts at every floor, one row each."""
    if not any(workload.verdicts for workload in run.workloads):
        return element(
            "p", "No policy could be judged: there is no verdict at any quality floor.", class_="reason"
        )
    names = [
        "Keep",
        "Verdict",
        "Best policy",
        "Speed",
        "Agreement",
        "Layers skipped",
        "Time per token",
        "Documents",
    ]
    kinds: list[Kind | None] = [None, None, None, "predicted", "replayed", "replayed", "predicted", None]
    labels = [f"{name}, {kind}" if kind else name for name, kind in zip(names, kinds, strict=True)]
    head = "".join(
        element("th", text(name) + (f"<br>{kind_chip(kind)}" if kind else ""), scope="col")
        for name, kind in zip(names, kinds, strict=True)
    )
    bodies = "".join(floor_rows(run, workload, labels) for workload in run.workloads)
    note = (
        "The threshold is chosen on one half of the documents and judged on the other, which it never "
        "saw. Speed "
        "compares bytes moved per token with plain decoding. Agreement counts tokens, not answers: the "
        "share of "
        f"{ANSWER_TOKENS}-token answers left unchanged is what the floor to the power {ANSWER_TOKENS} "
        "gives if "
        "misses were independent."
    )
    caption = element("caption", "Verdict by workload and quality floor, batch size 1")
    inner = element("table", caption + element("thead", element("tr", head)) + bodies, class_="floors")
    return (
        element("h2", "At the quality you would keep")
        + element(
            "div", inner, class_="scroll", tabindex=0, role="region", aria_label="Verdicts by quality floor"
        )
        + element("p", text(note), class_="note")
    )


def floor_rows(run: RunResult, workload: WorkloadResult, names: list[str]) -> str:
    """The rows of one workload under its own heading row."""
    heading = element(
        "tr", element("th", text(workload.name), scope="rowgroup", colspan=len(names)), class_="group"
    )
    rows = "".join(floor_row(run, verdict, names) for verdict in workload.verdicts)
    if not workload.verdicts:
        rows = element("tr", element("td", "no policy could be judged on this workload", colspan=len(names)))
    return element("tbody", heading + rows)


def floor_row(run: RunResult, verdict: Verdict, names: list[str]) -> str:
    """One verdict; each cell carries its column's name for the stacked layout of a phone."""
    sign = DECISION_SIGNS[verdict.decision]
    decision: Decision = verdict.decision
    seconds = predicted_seconds(run, verdict)
    unchanged = percent(verdict.floor**ANSWER_TOKENS, 0 if verdict.floor > 0.96 else 1)
    agreement = stacked(verdict.agreement, percent)
    if not verdict.floor_held and verdict.policy != "never":
        agreement += element("small", "below the floor", class_="warning")
    documents = f"chosen on {verdict.fit_documents}, judged on {verdict.report_documents}"
    needed = f"a certificate needs {verdict.documents_needed} or more"
    cells = [
        text(whole_percent(verdict.floor)) + small(f"{unchanged} of {ANSWER_TOKENS}-token answers unchanged"),
        element("span", text(f"{sign} {decision}"), class_=f"decision {decision_class(decision)}")
        + why(verdict),
        element("code", text(verdict.policy).replace(",", ",<wbr>").replace(":", ":<wbr>")),
        stacked(verdict.net_speedup, times),
        agreement,
        stacked(verdict.skip_ratio, percent),
        text("not timed" if seconds is None else milliseconds(seconds)),
        text(documents) + small(needed),
    ]
    row = element("th", cells[0], scope="row", data_name=names[0])
    row += "".join(element("td", c, data_name=n) for c, n in zip(cells[1:], names[1:], strict=True))
    return element("tr", row)


def why(verdict: Verdict) -> str:
    """The reason behind a decision, one click away."""
    return element("details", element("summary", "why") + element("p", text(verdict.reason)), class_="why")


def small(content: str) -> str:
    """A second, smaller line."""
    return element("small", text(content)) if content else ""


def stacked(estimate: Estimate, number: Callable[[float], str]) -> str:
    """A value with its interval below it, or the reason why there is none."""
    if estimate.value is None:
        return "undefined" + small(estimate.undefined or "")
    if estimate.low == estimate.high == estimate.value:
        return text(number(estimate.value))
    interval = interval_text(estimate.low, estimate.high, number)
    return text(number(estimate.value)) + small(interval or estimate.no_interval or "")


def caveat_list(run: RunResult) -> str:
    """What to know before quoting the sentence."""
    items = "".join(element("li", text(note)) for note in caveats(run))
    return element("div", element("h3", "Before you quote this") + element("ul", items), class_="caveats")
