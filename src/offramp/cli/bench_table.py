"""How `offramp bench` shows a result on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offramp.report.formats import (
    counted,
    decimal,
    duration,
    gain_text,
    percent,
    thousandths,
    timed_text,
)
from offramp.report.sections.decoded import COUNTS, RATES, SPEED, contenders_table
from offramp.report.timing import (
    a_a_text,
    answer_sentence,
    counted_text,
    defect_lines,
    floor_text,
    stopped_text,
)
from offramp.timing.results import BenchResult, Forecast

if TYPE_CHECKING:
    from rich.console import Console


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
    table = contenders_table(result.worth, result.plain)
    for names in (SPEED, COUNTS, RATES):
        console.print(table.only(*names).rich(timed))
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
        answer_sentence(main, result.plain, result.worth),
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
    said = timed_text(credit, thousandths)
    rest = f"; not timed: {', '.join(missing)}" if missing else ""
    return [f"what its exits add: {said} of {credit.over}, the best without exits{rest}"]


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

    diverged = timed_text(found.tokens_before_divergence, lambda value: decimal(value, 1))
    return [
        f"free running, {counted(found.prompts, 'answer')}: {diverged} tokens until an answer parts from the "
        f"full model's, {timed_text(found.sequence_match, percent)} of the answers equal, "
        f"{timed_text(found.agreement, percent)} of the tokens its choice; "
        f"NLL {timed_text(found.nll, nats)}, of its own answers {timed_text(found.plain_nll, nats)}"
    ]


def _forecast(found: Forecast) -> list[str]:
    predicted = (
        "not predicted (no --trace)" if found.predicted is None else f"predicted {duration(found.predicted)}"
    )
    lines = [
        f"a token of {found.policy} ({found.kv}): {predicted}, priced from what ran "
        f"{duration(found.priced)}, measured {timed_text(found.measured, duration)}; plain: "
        f"{duration(found.plain_predicted)} by the profile, measured {duration(found.plain_measured)}"
    ]
    if found.parts:
        parts = ", ".join(
            f"{part.part} {duration(part.priced)} priced and {duration(part.measured)} measured"
            for part in found.parts
        )
        lines.append(f"  its parts: {parts}")
    return lines
