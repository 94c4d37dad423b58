"""The answer: the verdict in a sentence, three key numbers, the table of floors."""

from __future__ import annotations

from collections.abc import Callable

from offramp.decoding.bench.results import Interval
from offramp.report.answers import certificate_answer, league_answer, machines_answer
from offramp.report.cells import decision_pill, signed_change
from offramp.report.decoded import Decoded
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
    whole_percent,
)
from offramp.report.headline import caveats, headline, main_verdict, overall_decision
from offramp.report.judgement import measured_words
from offramp.report.markup import (
    KIND_MEANING,
    Column,
    Kind,
    element,
    kind_chip,
    text,
    wide_table,
)
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.report.sections.floors import floors_block
from offramp.report.untransformed import transform_sentence
from offramp.tuning.results import Verdict


def verdict_section(run: RunResult) -> str:
    """Everything a hurried reader needs."""
    decision = overall_decision(run)
    where = (
        f"{run.model_name} · {run.layers} layers · {listed([w.name for w in run.workloads])} · one "
        "sequence at a time"
    )
    hero = (
        element("p", decision_pill(decision) + element("span", text(where)), class_="eyebrow")
        + element("h1", text(headline(run)))
        + element("div", "".join(key_numbers(run)), class_="keys")
        + in_short(run)
        + transform_line(run)
        + kinds_legend()
    )
    return element(
        "section", hero + floors_block(run) + caveat_list(run), id_="verdict", aria_label="The verdict"
    )


def in_short(run: RunResult) -> str:
    """The answers of league, certificate and machines, one row a workload; nothing if none was asked for."""
    columns: dict[str, Callable[[WorkloadResult], str | None]] = {
        "Fastest policy": league_answer,
        "Certificates": certificate_answer,
        "Where it would pay": machines_answer,
    }
    asked = {name: answer for name, answer in columns.items() if any(map(answer, run.workloads))}
    if not asked:
        return ""
    rows = [
        [text(w.name), *[text(answer(w) or "not asked") for answer in asked.values()]] for w in run.workloads
    ]
    names = [Column("Text"), *[Column(name) for name in asked]]
    return wide_table(names, [("", rows)], caption="In short", style="short")


def transform_line(run: RunResult) -> str:
    """What the transform itself costs; nothing for a model without transforms."""
    sentence = transform_sentence(run)
    return "" if sentence is None else element("p", text(sentence), class_="answer")


def kinds_legend() -> str:
    """What measured, replayed and predicted mean on this page."""
    items = [element("li", kind_chip(kind) + " " + text(meaning)) for kind, meaning in KIND_MEANING.items()]
    return element("ul", "".join(items), class_="kinds")


def key_numbers(run: RunResult) -> list[str]:
    """Three figures: what a policy would gain, what an oracle could skip, what decoding really took."""
    timed = decoded_card(run) if run.decoding else plain_card(run)
    return [gain_card(run), oracle_card(run), timed]


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


def decoded_card(run: RunResult) -> str:
    """The measured gain of the policies that were decoded for real."""
    lines = []
    values: dict[bool, list[float]] = {True: [], False: []}
    for decoded in run.decoding:
        chosen = decoded.chosen
        speedup = None if chosen is None else decoded.speedup(chosen)
        if speedup is not None:
            values[decoded.valid].append(speedup.value)
        words = "no policy was chosen" if chosen is None else decoded_words(decoded, speedup)
        lines.append((decoded.workload, words))
    lines += [(name, "not decoded") for name in run.not_decoded]
    plain = [decoded.plain_seconds for decoded in run.decoding]
    seconds = span_text([value for value in plain if value is not None], milliseconds)
    what = (
        "faster decoding, by the stopwatch, with the skipped layers not executed; plain decoding takes "
        f"{seconds or 'an unknown time'} per token on this machine"
    )
    return key_card(
        "measured", span_text(values[True] or values[False], signed_change) or "not timed", what, lines
    )


def decoded_words(decoded: Decoded, speedup: Interval | None) -> str:
    """One workload's measured gain in words; INVALID where it is not to be believed."""
    if speedup is None:
        return "not timed"
    return measured_words(speedup) + ("" if decoded.valid else ", INVALID")


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
        f"was not timed{'' if run.progress is None else ' yet'})"
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


def caveat_list(run: RunResult) -> str:
    """What to know before quoting the sentence."""
    above = transform_sentence(run)
    items = "".join(element("li", text(note)) for note in caveats(run) if note != above)
    return element("div", element("h3", "Before you quote this") + element("ul", items), class_="caveats")
