"""`offramp bench --combine`: accelerations alone and together, as a table, a file and a page."""

from __future__ import annotations

from pathlib import Path

from offramp.cli.combine_request import CombineRequest
from offramp.cli.combine_table import show_combined
from offramp.cli.console import Output, progress_bar
from offramp.decoding.measurement.combine import combine
from offramp.decoding.measurement.combined import CombineResult, write_combined
from offramp.decoding.openings import prompts_of
from offramp.models.model import Model
from offramp.records.typed import to_json
from offramp.report.combined import advice, write_combined_page


def combine_and_show(model: Model, request: CombineRequest, out: Output, *, trust_remote_code: bool) -> None:
    """Time what was asked for, show it, and keep it where that was asked for."""
    result = _measured(model, request, trust_remote_code)
    show_combined(out.console, result)
    page: Path | None = None
    if request.output is not None:
        write_combined(request.output, result)
        page = write_combined_page(result, request.output.with_suffix(".html"))
        for path in (request.output, page):
            out.console.print(f"written: {path}", markup=False, soft_wrap=True)
    out.finish(
        {
            "advice": advice(result),
            "defects": list(result.defects),
            "result": to_json(result),
            "file": None if request.output is None else str(request.output),
            "page": None if page is None else str(page),
        }
    )


def _measured(model: Model, request: CombineRequest, trust_remote_code: bool) -> CombineResult:
    prompts = prompts_of(
        model,
        request.workload,
        request.fewest_prompts,
        most=request.prompts,
        new_tokens=request.options.new_tokens,
        prompt_tokens=request.prompt_tokens,
        heads=request.heads,
    )
    with progress_bar("timing combinations") as progress:
        return combine(
            model,
            request.accelerations,
            request.options,
            prompts=prompts,
            heads=request.heads,
            limits=request.limits,
            plain=request.plain,
            workload=request.workload.name,
            floor=request.floor,
            trust_remote_code=trust_remote_code,
            seed=request.seed,
            progress=progress,
        )
