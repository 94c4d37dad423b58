"""How `offramp bench --combine` shows a result on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offramp.cli.bench_table import or_dash, ratio, table
from offramp.decoding.measurement.combined import Combination, CombineResult
from offramp.report.combined import advice, interval
from offramp.report.formats import counted, decimal, duration, percent
from offramp.report.timing import a_a_text, contender_answer, defect_lines, share_text, stopped_text

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def show_combined(console: Console, result: CombineResult) -> None:
    """Speed and quality of every combination, defects and notes, and the advice last."""
    on = f" on {result.workload}" if result.workload else ""
    console.print(
        f"{', '.join(result.accelerations.values())} of {result.model}{on}: "
        f"{counted(result.prompts, 'prompt')}, {result.new_tokens} new tokens, "
        f"{counted(result.rounds, 'round')}",
        markup=False,
    )
    timed = [one for one in result.combinations if one.speedup is not None]
    console.print(_speed_table(timed, result))
    console.print(_together_table(timed))
    console.print(_quality_table(timed))
    ended = (
        f"{stopped_text(result.stopped, result.seconds_spent)}; the plain decoder against itself: "
        f"{a_a_text(result.a_a)}"
    )
    lines = [ended, *defect_lines(result.defects), *_details(result)]
    for line in (*lines, advice(result)):
        console.print(line, markup=False)


def _speed_table(timed: list[Combination], result: CombineResult) -> Table:
    rows = [
        [
            one.name,
            or_dash(one.contender.seconds_per_token, lambda seconds: duration(seconds.value)),
            interval(one.speedup),
            contender_answer(one.contender, result.worth),
        ]
        for one in timed
    ]
    return table(["", "a token", f"speed over {result.plain}", "answer"], rows)


def _together_table(timed: list[Combination]) -> Table:
    """What several parts come to, beside the product of what each brings alone."""
    rows = [
        [one.name, decimal(one.product.value), interval(one.interaction)]
        for one in timed
        if one.product is not None
    ]
    return table(["", "product", "of the product"], rows)


def _quality_table(timed: list[Combination]) -> Table:
    """Each held against the untransformed full model's own greedy answers."""
    rows = []
    for one in timed:
        found = one.quality
        if found is None:
            continue
        rows.append(
            [
                one.name,
                percent(found.forced_agreement.value),
                share_text(found.shared),
                percent(found.free_running.sequence_match.value, 0),
                ratio(found.free_running.nll.value),
            ]
        )
    return table(["", "its tokens", "equal at first", "same answers", "NLL"], rows)


def _details(result: CombineResult) -> list[str]:
    """What was left out or excluded, and notes."""
    missing = [
        f"left out: {one.name}: {one.contender.left_out}"
        for one in result.combinations
        if one.contender.left_out is not None
    ]
    excluded = [f"not combined: {sentence}" for sentence in result.excluded]
    return [*missing, *excluded, *(f"note: {note}" for note in result.notes)]
