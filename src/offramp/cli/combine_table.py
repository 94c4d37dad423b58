"""How `offramp bench --combine` shows a result on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offramp.cli.bench_table import or_dash, ratio, table, verdict_lines
from offramp.decoding.bench.combined import Combination, CombineResult
from offramp.report.combined_words import advice, interval, shared_text
from offramp.report.formats import counted, decimal, duration, percent

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


def show_combined(console: Console, result: CombineResult) -> None:
    """Speed and quality of every combination, the verdict with its reasons, notes, and the advice last."""
    on = f" on {result.workload}" if result.workload else ""
    console.print(
        f"{', '.join(result.accelerations.values())} of {result.model}{on}: "
        f"{counted(result.prompts, 'prompt')}, {result.new_tokens} new tokens, "
        f"{counted(result.rounds, 'round')}",
        markup=False,
    )
    timed = [one for one in result.combinations if one.speedup is not None]
    console.print(_speed_table(timed, result.plain))
    console.print(_quality_table(timed))
    lines = [*verdict_lines(result.validity, result.a_a, result.reasons), *_details(result)]
    for line in (*lines, advice(result)):
        console.print(line, markup=False)


def _speed_table(timed: list[Combination], plain: str) -> Table:
    rows = [
        [
            one.name,
            or_dash(one.contender.seconds_per_token, lambda seconds: duration(seconds.value)),
            interval(one.speedup),
            "–" if one.product is None else decimal(one.product.value),
            interval(one.interaction),
        ]
        for one in timed
    ]
    return table(["", "a token", f"speed over {plain}", "product", "of the product"], rows)


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
                shared_text(found),
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
