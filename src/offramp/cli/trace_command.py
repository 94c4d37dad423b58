"""`offramp trace`: measure a model at every exit on one workload."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    Signals,
    Stream,
    Tokens,
    Transforms,
    WorkloadNames,
    require_options,
    require_placement,
)
from offramp.errors import InputError
from offramp.models.devices import AUTO
from offramp.tracing.progress import stage
from offramp.tracing.request import DEFAULT_TOKENS


def trace(
    model: ModelName,
    workload: WorkloadNames,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the trace.")],
    tokens: Tokens = DEFAULT_TOKENS,
    exits: ExitsOrTrained = "all",
    signals: Signals = "",
    heads: HeadsFile = None,
    context: ContextLength = None,
    document_tokens: DocumentTokens = None,
    device: Device = AUTO,
    dtype: Precision = AUTO,
    transform: Transforms = None,
    reference: Annotated[
        str | None,
        typer.Option(
            "--reference",
            metavar="MODEL",
            help="Another model of the same vocabulary, whose choice at every token is kept: what a trained "
            "model was before.",
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
    """Measure a model at every exit on one workload. Stopped? Run it again: it resumes."""
    from offramp.models.memory import parse_size
    from offramp.tracing.exits_folder import exits_of
    from offramp.tracing.loading import find_model, load_for_tracing, read_transforms
    from offramp.tracing.request import parse_signals
    from offramp.workloads.registry import load_workload

    out = Output(as_json)
    exits, heads = exits_of(exits, heads)
    require_options(
        tokens=tokens,
        context=context,
        document_tokens=document_tokens,
        exits=exits,
        output=output,
    )
    require_placement(device, dtype)
    budget = None if memory is None else parse_size(memory, "--memory")
    transforms = read_transforms(transform, dtype)
    if len(workload) > 1:
        raise InputError(
            f"a trace is of one workload, not of {len(workload)}",
            where="--workload",
            fix="trace each into a folder of its own, or all at once with offramp run",
        )
    work = load_workload(workload[0])
    recorded = parse_signals(signals, work.mode)

    from offramp.report.formats import counted
    from offramp.tracing.fitted_heads import FittedHeads
    from offramp.tracing.folder import refuse_foreign_files
    from offramp.tracing.heads_file import read_heads
    from offramp.tracing.request import parse_exits
    from offramp.tracing.tracer import trace as trace_model

    refuse_foreign_files(output)
    fitted = None if heads is None else read_heads(heads)
    with stage("loading the model and checking its exits"):
        asked = find_model(model, transforms, dtype=dtype, trust_remote_code=trust_remote_code, device=device)
        if fitted is not None:
            asked.require_heads(fitted, str(heads))
            FittedHeads.of(fitted, parse_exits(exits, fitted.model["layers"]))
        judge = None
        if reference is not None:
            judge = find_model(
                reference, (), dtype=asked.dtype, trust_remote_code=trust_remote_code, device=device
            )
        loaded = load_for_tracing(asked, [work], stream=stream, memory=budget)
        original = None if judge is None else judge.load()
    result = trace_model(
        loaded,
        work,
        tokens=tokens,
        exits=exits,
        signals=recorded,
        heads=fitted,
        context=context,
        document_tokens=document_tokens,
        reference=original,
        output=output,
        overwrite=overwrite,
        repair=repair,
        progress=True,
    )
    valid = [document for document in result.documents if document.valid]
    left_out = [document for document in result.documents if not document.valid]
    lines = [
        f"{counted(result.token_count, 'token')} of {counted(len(valid), 'document')} at "
        f"{counted(len(result.exits), 'exit')}: {output}",
        *[f"document {document.id} is left out: {document.reason}" for document in left_out],
        *result.provenance["notes"],
    ]
    for line in lines:
        out.console.print(line, markup=False, soft_wrap=True)
    out.finish(
        {
            "trace": str(output),
            "tokens": result.token_count,
            "documents": len(valid),
            "left_out": [{"id": document.id, "reason": document.reason} for document in left_out],
            "exits": result.exits.tolist(),
            "facts": list(result.fact_names),
            "streamed": loaded.streamed is not None,
            "notes": result.provenance["notes"],
            "request_fingerprint": result.provenance["request_fingerprint"],
        }
    )
