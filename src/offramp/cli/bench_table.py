"""How `offramp bench` shows a result on a terminal."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from offramp.decoding.measurement.results import BenchResult, Contender, Forecast
from offramp.report.formats import counted, decimal, duration, gain_text, percent, timed_text, value_text
from offramp.report.table import Column, Table
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

MIB = 2.0**20


def ratio(value: float) -> str:
    """A ratio of seconds."""
    return decimal(value, 3)


def shown_mib(size: float) -> str:
    """Bytes in MiB."""
    return f"{decimal(size / MIB, 1)} MiB"


def show(console: Console, result: BenchResult) -> None:
    """The answer, the tables beside it, quality, forecasts and notes."""
    side_by_side = f", batch {result.batch} in {result.batching}" if result.batch > 1 else ""
    fresh = f" in {result.processes} processes" if result.processes > 1 else ""
    console.print(
        f"{result.policy} ({result.kv}) on {result.model}: {counted(result.prompts, 'prompt')}, "
        f"{result.new_tokens} new tokens, {counted(result.rounds, 'round')}{side_by_side}{fresh}",
        markup=False,
    )
    timed = [contender for contender in result.contenders if contender.left_out is None]
    for table in (speed_table(result), COUNTED, RATES):
        console.print(table.rich(timed))
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


def speed_table(result: BenchResult) -> Table[Contender]:
    """Seconds per token, the ratio, and what it answers."""
    return Table(
        (
            Column(" ", lambda contender: contender.name),
            Column("A token", lambda contender: _value(contender.seconds_per_token), duration),
            Column(f"Speed over {result.plain}", lambda contender: _ratio(contender.ratio)),
            Column("Answer", lambda contender: contender_answer(contender, result.worth)),
        ),
        words=1,
    )


COUNTED: Table[Contender] = Table(
    (
        Column(" ", lambda contender: contender.name),
        Column("Layers ran / said", lambda contender: _layers(contender)),
        Column("Same output", lambda contender: contender.same_output, partial(percent, digits=0)),
        Column("Agreement", lambda contender: _value(contender.executed_agreement), percent),
    ),
    words=1,
)
"""What was run for it, and what came out."""

RATES: Table[Contender] = Table(
    (
        Column(" ", lambda contender: contender.name),
        Column("Tokens a second", lambda contender: contender.tokens_per_second, partial(decimal, digits=1)),
        Column("First token", lambda contender: contender.first_token_seconds, duration),
        Column("Peak memory", lambda contender: contender.peak_memory_bytes, shown_mib),
    ),
    words=1,
)
"""What else users ask for."""


def _value(interval: Estimate[float] | None) -> float | None:
    return None if interval is None else interval.value


def _ratio(interval: Estimate[float] | None) -> str | None:
    return None if interval is None else _interval(interval, ratio)


def _layers(contender: Contender) -> str | None:
    """Layers of a token that ran, and those that the decoder says it ran."""
    ran, said = contender.layers_per_token, contender.claimed_layers_per_token
    if ran is None:
        return None
    return decimal(ran, 1) + ("" if said is None else f" / {decimal(said, 1)}")


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
