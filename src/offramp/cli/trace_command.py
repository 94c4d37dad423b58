"""`offramp trace`: measure a model at every exit on one workload."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offramp.cli.console import Output, stage
from offramp.cli.options import (
    AsJson,
    ContextLength,
    DocumentTokens,
    Exits,
    HeadsFile,
    ModelName,
    Overwrite,
    Precision,
    RemoteCode,
    Repair,
    Signals,
    Tokens,
    WorkloadName,
    require_options,
)
from offramp.tracing.sizes import DEFAULT_TOKENS


def trace(
    model: ModelName,
    workload: WorkloadName,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the trace.")],
    tokens: Tokens = DEFAULT_TOKENS,
    exits: Exits = "all",
    signals: Signals = "",
    heads: HeadsFile = None,
    context: ContextLength = None,
    document_tokens: DocumentTokens = None,
    dtype: Precision = "float32",
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
    repair: Repair = False,
    as_json: AsJson = False,
) -> None:
    """Measure a model at every exit on one workload. Stopped? Run it again: it resumes."""
    from offramp.tracing.recording import parse_signals
    from offramp.workloads.registry import load_workload

    out = Output(as_json)
    require_options(
        tokens=tokens,
        context=context,
        document_tokens=document_tokens,
        exits=exits,
        dtype=dtype,
        output=output,
    )
    work = load_workload(workload)
    recorded = parse_signals(signals, work.mode)

    from offramp.models.loading import find_source, load_source
    from offramp.report.formats import counted
    from offramp.tracing.fitted import FittedHeads
    from offramp.tracing.heads_file import read_heads, require_base
    from offramp.tracing.request import parse_exits
    from offramp.tracing.tracer import trace as trace_model

    fitted = None if heads is None else read_heads(heads)
    with stage("loading the model and checking its exits"):
        source = find_source(model, trust_remote_code=trust_remote_code)
        if fitted is not None:
            base = {"name": source.name, "fingerprint": source.identity.fingerprint}
            require_base(fitted, base, str(heads))
            FittedHeads.of(fitted, parse_exits(exits, fitted.model["layers"]))
        loaded = load_source(source, dtype=dtype, trust_remote_code=trust_remote_code)
    result = trace_model(
        loaded,
        work,
        tokens=tokens,
        exits=exits,
        signals=recorded,
        heads=fitted,
        context=context,
        document_tokens=document_tokens,
        output=output,
        overwrite=overwrite,
        repair=repair,
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
            "notes": result.provenance["notes"],
            "request_fingerprint": result.provenance["request_fingerprint"],
        }
    )
