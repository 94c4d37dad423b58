"""How `offramp bench` shows a result on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from offramp.decoding.measurement.results import BenchResult, Contender, Forecast
from offramp.report.formats import counted, decimal, duration, gain_text, percent, timed_text, value_text
from offramp.report.timing import (
    a_a_text,
    contender_answer,
    counted_text,
    defect_lines,
    floor_text,
    headline_of,
    stopped_text,
)
from offramp.scoring.estimate import Estimate

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

MIB = 2.0**20


def show(console: Console, result: BenchResult) -> None:
    """The answer, the tables beside it, quality, forecasts and notes."""
    side_by_side = f", batch {result.batch} in {result.batching}" if result.batch > 1 else ""
    fresh = f" in {result.processes} processes" if result.processes > 1 else ""
    console.print(
        f"{result.policy} ({result.kv}) on {result.model}: {counted(result.prompts, 'prompt')}, "
        f"{result.new_tokens} new tokens, {counted(result.rounds, 'round')}{side_by_side}{fresh}",
        markup=False,
    )
    console.print(_speed_table(result))
    console.print(_counted_table(result))
    console.print(_rate_table(result))
    judged = answer_lines(result)
    for line in (*judged, *_left_out(result), *_quality(result)):
        console.print(line, markup=False)
    for forecast in result.forecasts:
        for line in _forecast(forecast):
            console.print(line, markup=False)
    for note in result.notes:
        console.print(f"note: {note}", markup=False)


def answer_lines(result: BenchResult) -> list[str]:
    """The answer, what it stands on, and what is wrong with it."""
    main = result.main
    beside = counted_text(main, result.contender(result.plain))
    return [
        headline_of(result),
        *([] if beside is None else [f"counted, a token: {beside}"]),
        *([] if main.gain is None else [f"its gain by prices: {gain_text(main.gain)} of plain decoding"]),
        *_credit_line(result),
        *([] if result.floor is None else [floor_text(result.floor, result.prompts)]),
        f"{stopped_text(result.stopped, result.seconds_spent)}; the plain decoder against itself: "
        f"{a_a_text(result.a_a)}",
        *defect_lines(result.defects),
    ]


def _credit_line(result: BenchResult) -> list[str]:
    """What its exits add to the best decoder without them, and which of those took no turns."""
    credit = result.credit(result.main.name, None if result.floor is None else result.floor.value)
    if credit is None or result.main.full_depth:
        return []
    missing = result.untimed_rivals
    said = _interval(Estimate(credit.value, credit.low, credit.high), ratio)
    rest = f"; not timed: {', '.join(missing)}" if missing else ""
    return [f"what its exits add: {said} of {credit.over}, the best without exits{rest}"]


def _speed_table(result: BenchResult) -> Table:
    """Seconds per token, the ratio, and what it answers."""
    rows = [
        [
            contender.name,
            or_dash(contender.seconds_per_token, lambda seconds: duration(seconds.value)),
            or_dash(contender.ratio, lambda speedup: _interval(speedup, ratio)),
            contender_answer(contender, result.worth),
        ]
        for contender in _timed(result)
    ]
    return table(["", "a token", f"speed over {result.plain}", "answer"], rows)


def _counted_table(result: BenchResult) -> Table:
    """What was run for it, and what came out."""
    rows = [
        [
            contender.name,
            or_dash(contender.layers_per_token, layers)
            + or_dash(contender.claimed_layers_per_token, lambda claimed: f" / {layers(claimed)}", ""),
            or_dash(contender.same_output, lambda share: percent(share, 0)),
            or_dash(contender.executed_agreement, lambda kept: percent(kept.value)),
        ]
        for contender in _timed(result)
    ]
    return table(["", "layers ran / said", "same output", "agreement"], rows)


def _rate_table(result: BenchResult) -> Table:
    """What else users ask for."""
    rows = [
        [
            contender.name,
            or_dash(contender.tokens_per_second, lambda rate: decimal(rate, 1)),
            or_dash(contender.first_token_seconds, duration),
            or_dash(contender.peak_memory_bytes, lambda size: f"{decimal(size / MIB, 1)} MiB"),
        ]
        for contender in _timed(result)
    ]
    return table(["", "tokens a second", "first token", "peak memory"], rows)


def table(heads: list[str], rows: list[list[str]]) -> Table:
    """Rows of texts under heads, numbers on the right."""
    from rich.text import Text

    from offramp.report.word_table import WordTable

    table = WordTable()
    for place, head in enumerate(heads):
        table.add_column(head, justify="right" if place else "left")
    for row in rows:
        # As text, not markup: a policy within another stands in brackets.
        table.add_row(*map(Text, row))
    return table


def _timed(result: BenchResult) -> list[Contender]:
    return [contender for contender in result.contenders if contender.left_out is None]


def ratio(value: float) -> str:
    """A ratio of seconds."""
    return decimal(value, 3)


def layers(value: float) -> str:
    """Layers of a token."""
    return decimal(value, 1)


def or_dash(value: Any, text: Callable[[Any], str], dash: str = "–") -> str:
    """A value as text, a dash for none."""
    return dash if value is None else text(value)


def _left_out(result: BenchResult) -> list[str]:
    return [
        f"left out: {contender.name}: {contender.left_out}"
        for contender in result.contenders
        if contender.left_out is not None
    ]


def _quality(result: BenchResult) -> list[str]:
    found = result.free_running
    if found is None:
        return []

    def nats(value: float) -> str:
        return decimal(value, 3)

    diverged = _interval(found.tokens_before_divergence, lambda value: decimal(value, 1))
    return [
        f"free running, {counted(found.prompts, 'answer')}: {diverged} tokens until an answer parts from the "
        f"full model's, {_interval(found.sequence_match, percent)} of the answers equal, "
        f"{_interval(found.agreement, percent)} of the tokens its choice; "
        f"NLL {_interval(found.nll, nats)}, of its own answers {_interval(found.plain_nll, nats)}"
    ]


def _forecast(found: Forecast) -> list[str]:
    predicted = (
        "not predicted (no --trace)" if found.predicted is None else f"predicted {duration(found.predicted)}"
    )
    lines = [
        f"a token of {found.policy} ({found.kv}): {predicted}, priced from what ran "
        f"{duration(found.priced)}, measured {_interval(found.measured, duration)}; plain: "
        f"{duration(found.plain_predicted)} by the profile, measured {duration(found.plain_measured)}"
    ]
    if found.parts:
        parts = ", ".join(
            f"{part.part} {duration(part.priced)} priced and {duration(part.measured)} measured"
            for part in found.parts
        )
        lines.append(f"  its parts: {parts}")
    return lines


def _interval(interval: Estimate[float], number: Callable[[float], str]) -> str:
    shown = value_text if number is percent else timed_text
    return shown(interval.value, interval.low, interval.high, number)
