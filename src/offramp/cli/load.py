"""`offramp load`: contenders under load, shown; the request is `offramp.serving.request.Load`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.cli.command import Output
from offramp.serving.request import Load

if TYPE_CHECKING:
    from rich.console import Console

    from offramp.serving.results import LoadResult


def load(asked: Load, out: Output) -> None:
    """Predict, serve where that was asked for, show it, and keep it."""
    from offramp.kit.typed import to_json
    from offramp.report.sections.load import headline, write_load_page

    result = replace(_near_its_run(asked), progress=True).carry_out()
    show(out.console, result)
    page = None
    if asked.output is not None:
        page = str(write_load_page(result, asked.output.with_suffix(".html")))
        out.say(f"written: {asked.output}", f"written: {page}")
    pays = {server.policy: result.answer_of(server.name) for server in result.with_exits}
    file = None if asked.output is None else str(asked.output)
    written = {"file": file, "page": page}
    out.finish({"answer": headline(result), "pays": pays, "result": to_json(result), **written})


def _near_its_run(asked: Load) -> Load:
    """The same with the trace, timings and heads of the run that it lies in, where it lies in one."""
    from offramp.runs.folder import contents_at, is_run_folder, machine_near, trace_for

    place = Path(str(asked.subject))
    if not place.is_dir() or not (is_run_folder(place) or contents_at(place)):
        return asked
    files = (str(policy) for policy in asked.policies if str(policy).endswith(".json"))
    trace = trace_for(place, next(files, None))
    contents = contents_at(trace)
    heads = contents.heads if asked.execute and asked.heads is None and contents else asked.heads
    return replace(asked, subject=trace, hardware=machine_near(contents, asked.hardware), heads=heads)


def show(console: Console, result: LoadResult) -> None:
    """Who serves how much, every rate, what was served, and the answer last."""
    from offramp.report.sections import load as section

    columns = ("Contender", "Requests", "p95 of a request", "p95 ttft", "p95 tpot", "Without exits")
    console.print(section.circumstances(result), markup=False)
    console.print(section.SERVERS.rich(result.servers))
    console.print(section.POINTS.only(*columns).rich(result.points))
    lines = [f"note: {note}" for note in result.notes]
    if result.execution is not None:
        console.print(section.COMPARED.rich(result.execution.compared))
        lines += section.execution_lines(result.execution)
    for line in (*lines, *section.sentences(result), section.headline(result)):
        console.print(line, markup=False)
