"""`offramp trace`: measure a model at every exit on one workload."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from offramp.cli.console import Output
from offramp.cli.options import (
    AsJson,
    ContextLength,
    DocumentTokens,
    Exits,
    ModelName,
    Overwrite,
    Precision,
    RemoteCode,
    Repair,
    Tokens,
    WorkloadName,
)
from offramp.tracing.sizes import DEFAULT_TOKENS


def trace(
    model: ModelName,
    workload: WorkloadName,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder for the trace.")],
    tokens: Tokens = DEFAULT_TOKENS,
    exits: Exits = "all",
    context: ContextLength = None,
    document_tokens: DocumentTokens = None,
    dtype: Precision = "float32",
    trust_remote_code: RemoteCode = False,
    overwrite: Overwrite = False,
    repair: Repair = False,
    as_json: AsJson = False,
) -> None:
    """Measure a model at every exit on one workload. Stopped? Run it again: it resumes."""
    from offramp.workloads.packing import require_sizes
    from offramp.workloads.registry import load_workload

    out = Output(as_json)
    require_sizes(tokens=tokens, context=context, document_tokens=document_tokens)
    work = load_workload(workload)

    from offramp.models.loading import load_model
    from offramp.tracing.tracer import trace as trace_model

    loaded = load_model(model, dtype=dtype, trust_remote_code=trust_remote_code)
    result = trace_model(
        loaded,
        work,
        tokens=tokens,
        exits=exits,
        context=context,
        document_tokens=document_tokens,
        output=output,
        overwrite=overwrite,
        repair=repair,
    )
    valid = [document for document in result.documents if document.valid]
    left_out = [document for document in result.documents if not document.valid]
    out.console.print(
        f"{result.token_count:,} tokens of {len(valid)} documents at {len(result.exits)} exits: {output}"
    )
    for document in left_out:
        out.console.print(f"left out: {document.id}: {document.reason}")
    for note in result.provenance["notes"]:
        out.console.print(note)
    out.finish(
        {
            "trace": str(output),
            "tokens": result.token_count,
            "documents": len(valid),
            "left_out": [{"id": document.id, "reason": document.reason} for document in left_out],
            "exits": result.exits.tolist(),
            "notes": result.provenance["notes"],
            "request_fingerprint": result.provenance["request_fingerprint"],
        }
    )
