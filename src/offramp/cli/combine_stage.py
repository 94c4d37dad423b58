"""`offramp bench --combine`: accelerations alone and together, as a table, a file and a page."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offramp.cli.bench_request import Bench
from offramp.cli.console import Output
from offramp.decoding.openings import prompts_of
from offramp.kit.typed import to_json
from offramp.models.model import Model
from offramp.report.combined import (
    PRODUCTS,
    QUALITY,
    SPEED,
    TOGETHER,
    advice,
    combinations_table,
    write_combined_page,
)
from offramp.report.formats import counted
from offramp.report.timing import a_a_text, defect_lines, stopped_text
from offramp.timing.accelerations import read_accelerations
from offramp.timing.combine import combine
from offramp.timing.results import CombineResult, write_combined
from offramp.tracing.progress import progress_bar, stage

if TYPE_CHECKING:
    from rich.console import Console


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
    table = combinations_table(result)
    together = [one for one in timed if one.product is not None]
    console.print(table.only(*SPEED).rich(timed))
    console.print(PRODUCTS.only(*TOGETHER).rich(together))
    console.print(table.only(*QUALITY).rich(timed))
    ended = (
        f"{stopped_text(result.stopped, result.seconds_spent)}; the plain decoder against itself: "
        f"{a_a_text(result.a_a)}"
    )
    lines = [ended, *defect_lines(result.defects), *_details(result)]
    for line in (*lines, advice(result)):
        console.print(line, markup=False)


def _details(result: CombineResult) -> list[str]:
    """What was left out or excluded, and notes."""
    missing = [
        f"left out: {one.name}: {one.contender.left_out}"
        for one in result.combinations
        if one.contender.left_out is not None
    ]
    excluded = [f"not combined: {sentence}" for sentence in result.excluded]
    return [*missing, *excluded, *(f"note: {note}" for note in result.notes)]


def combine_and_show(asked: Bench, out: Output) -> None:
    """Time what was asked for, show it, and keep it where that was asked for."""
    with stage("loading the model and checking its exits"):
        found = asked.find(asked.model)
        read_accelerations(asked.combine, found.dtype)
        model = found.load()
    result = _measured(model, asked)
    show_combined(out.console, result)
    file, page = asked.combined_file, None
    if file is not None:
        write_combined(file, result)
        page = write_combined_page(result, file.with_suffix(".html"))
        out.say(f"written: {file}", f"written: {page}")
    out.finish(
        {
            "advice": advice(result),
            "defects": list(result.defects),
            "result": to_json(result),
            "file": None if file is None else str(file),
            "page": None if page is None else str(page),
        }
    )


def _measured(model: Model, asked: Bench) -> CombineResult:
    prompts = prompts_of(
        model,
        asked.text,
        asked.fewest_prompts,
        most=asked.most_prompts,
        new_tokens=asked.new_tokens,
        prompt_tokens=asked.prompt_tokens,
        heads=asked.fitted,
    )
    with progress_bar("timing combinations") as progress:
        return combine(
            model,
            asked.combine,
            asked.options,
            prompts=prompts,
            heads=asked.fitted,
            limits=asked.limits,
            plain=asked.plain,
            workload=asked.text.name,
            floor=asked.least_agreement,
            trust_remote_code=asked.trust_remote_code,
            seed=asked.seed,
            progress=progress,
        )
