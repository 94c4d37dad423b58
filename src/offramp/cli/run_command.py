"""`offramp run`: from a model to a measured, scored, readable report."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from offramp.cli.console import Output
from offramp.cli.options import (
    AsJson,
    ContextLength,
    Device,
    DocumentTokens,
    ExitsOrTrained,
    HeadsFile,
    Memory,
    ModelName,
    Overwrite,
    Precision,
    RemoteCode,
    Repair,
    Stream,
    Tokens,
    Transforms,
)
from offramp.cli.run_folder import DECODE_MINUTES, SUMMARY_FILE
from offramp.kit.defaults import DEFAULT_MODEL, DEFAULT_WORKLOADS, LOCAL, WORTH
from offramp.models.devices import AUTO
from offramp.tracing.request import DEFAULT_TOKENS

if TYPE_CHECKING:
    from offramp.cli.run_outputs import FinishedRun


def run(
    model: ModelName = DEFAULT_MODEL,
    workload: Annotated[
        list[str] | None,
        typer.Option(
            "--workload",
            "-w",
            help=f"May be given several times. By default {' and '.join(DEFAULT_WORKLOADS)}.",
            show_default=False,
        ),
    ] = None,
    tokens: Tokens = DEFAULT_TOKENS,
    output: Annotated[
        Path | None,
        typer.Option(
            "-o", "--output", help="Folder for everything. By default runs/<model>-<key>.", show_default=False
        ),
    ] = None,
    exits: ExitsOrTrained = "all",
    context: ContextLength = None,
    document_tokens: DocumentTokens = None,
    device: Device = AUTO,
    dtype: Precision = AUTO,
    transform: Transforms = None,
    heads: HeadsFile = None,
    hardware: Annotated[
        str,
        typer.Option(
            "--hardware",
            help="The machine to predict for: local (timed first), one of offramp list hardware, or a .toml.",
        ),
    ] = LOCAL,
    worth: Annotated[
        float,
        typer.Option(
            "--worth", help="What exits must add, to the best decoder without them, to be worth it."
        ),
    ] = WORTH,
    floor: Annotated[
        list[str] | None,
        typer.Option(
            "--floor",
            help="An agreement that you will not give up, as 0.95 or agreement=0.95; may be given several "
            "times. By default 0.99, 0.95 and 0.9.",
            show_default=False,
        ),
    ] = None,
    decode: Annotated[
        bool,
        typer.Option(
            "--decode/--no-decode",
            help="End with real decoding of the chosen policies, timed beside plain decoding. Without it, "
            "every speed is a prediction.",
        ),
    ] = True,
    minutes: Annotated[
        float | None,
        typer.Option(
            "--minutes",
            help="Minutes of that real decoding, all texts together: of documents for certificates, and of "
            f"timing. By default {DECODE_MINUTES:g}. Where a verdict is not settled, the same command with "
            "more goes on.",
            show_default=False,
        ),
    ] = None,
    trust_remote_code: RemoteCode = False,
    stream: Stream = None,
    memory: Memory = None,
    overwrite: Overwrite = False,
    repair: Repair = False,
    as_json: AsJson = False,
) -> None:
    """Would early exit pay? Traces a model, searches policies, decodes with the best, and writes a page.

    Stopped? Run it again: it resumes after the last whole part. What was timed is kept; --overwrite times it
    again.
    """
    from offramp.cli.run_study import RunOptions, read_floors
    from offramp.tracing.exits_folder import exits_of
    from offramp.tracing.loading import read_transforms
    from offramp.workloads.registry import load_workload

    out = Output(as_json)
    exits, heads = exits_of(exits, heads)
    transforms = read_transforms(transform, dtype)
    options = RunOptions(
        model=model,
        tokens=tokens,
        exits=exits,
        context=context,
        document_tokens=document_tokens,
        device=device,
        dtype=dtype,
        transforms=tuple(one.text for one in transforms),
        trust_remote_code=trust_remote_code,
        heads=heads,
        hardware=hardware,
        worth=worth,
        overwrite=overwrite,
        repair=repair,
        floors=read_floors(floor),
        decode=decode,
        minutes=minutes,
        stream=stream,
        memory=memory,
        workloads_given=bool(workload),
    )
    options.check(output)
    workloads = [load_workload(name) for name in dict.fromkeys(workload or DEFAULT_WORKLOADS)]

    from offramp.cli.run_stages import carry_out
    from offramp.report.terminal import print_summary, print_verdict_so_far

    finished = carry_out(
        options, workloads, output, before_decoding=lambda found: print_verdict_so_far(found, out.console)
    )
    print_summary(finished.result, out.console, finished.report)
    out.finish(_short(finished))


SHORT = ("workload", "floor", "decision", "policy", "kv", "certified", "executed_agreement", "speed")
"""Of a verdict, in what `--json` prints; summary.json has everything."""


def _short(finished: FinishedRun) -> dict[str, Any]:
    """The answer of a run for machines: headline, verdicts, what to do next, and where the rest lies."""
    from offramp.report.next_step import next_step

    verdict = finished.summary["verdict"]
    return {
        "headline": verdict["headline"],
        "decision": verdict["decision"],
        "verdicts": [
            {**{name: one[name] for name in SHORT}, "missing": one["missing"]}
            for one in verdict["by_workload"]
        ],
        "next": None if (step := next_step(finished.result)) is None else asdict(step),
        "summary": str(finished.report.parent / SUMMARY_FILE),
        "report": str(finished.report),
    }
