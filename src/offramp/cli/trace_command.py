"""`offramp trace`: measure a model at every exit on one workload."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from offramp.cli.console import Output
from offramp.files import require_writable
from offramp.kit.request import Request, flags
from offramp.kit.rules import Must
from offramp.tracing.asked import Made, Measuring, OnModel, Streamed
from offramp.tracing.progress import stage

if TYPE_CHECKING:
    from offramp.heads.exit_heads import ExitHeads
    from offramp.models.model import Model
    from offramp.tracing.trace import Trace
    from offramp.workloads.workload import Workload


@dataclass(frozen=True, kw_only=True)
class TraceCommand(Measuring, OnModel, Streamed, Made, Request):
    """Measure a model at every exit on one workload. Stopped? Run it again: it resumes."""

    workload: Annotated[
        tuple[str, ...],
        flags("--workload", "-w"),
        Must(
            lambda names: len(names) == 1,
            "one, as a trace is of one text",
            "trace each into a folder of its own, or all at once with offramp run",
        ),
    ]
    """prose, code, chat, math (prose:short, code:short, math:short: many short items), txt:PATH,
    jsonl:PATH#field, hf:dataset#split#field, continued:N:WORKLOAD (the model goes on after N tokens)."""
    output: Annotated[Path, flags("--output", "-o")]
    """Folder for the trace."""
    signals: str = ""
    """What to record beyond the facts of every trace: restricted,kl_to_previous or all."""
    reference: Annotated[str | None, flags(metavar="MODEL")] = None
    """Another model of the same vocabulary, whose choice at every token is kept: what a trained model was
    before."""

    def check(self) -> None:
        """Refuse an output that cannot be a folder."""
        super().check()
        require_writable(self.output)


def trace(asked: TraceCommand, out: Output) -> None:
    """Trace, and say what the trace holds."""
    from offramp.tracing.request import parse_signals
    from offramp.workloads.registry import load_workload

    work = load_workload(asked.workload[0])
    recorded = parse_signals(asked.signals, work.mode)

    from offramp.heads.file import read_heads
    from offramp.tracing.folder import TRACE_FOLDER
    from offramp.tracing.tracer import trace as trace_model

    TRACE_FOLDER.require(asked.output, overwrite=True)
    heads = None if asked.heads_file is None else read_heads(asked.heads_file)
    model, reference = _models(asked, work, heads)
    made = trace_model(
        model,
        work,
        tokens=asked.tokens,
        exits=asked.layers,
        signals=recorded,
        heads=heads,
        context=asked.context,
        document_tokens=asked.document_tokens,
        reference=reference,
        output=asked.output,
        overwrite=asked.overwrite,
        repair=asked.repair,
        progress=True,
    )
    out.say(*_lines(made, asked.output))
    out.finish(_summary(made, asked.output, streamed=model.streamed is not None))


def _models(asked: TraceCommand, work: Workload, heads: ExitHeads | None) -> tuple[Model, Model | None]:
    """The model, and the one whose choices are kept beside its own."""
    from offramp.heads.at_work import require_exits
    from offramp.tracing.loading import find_model, load_for_tracing
    from offramp.tracing.request import parse_exits

    with stage("loading the model and checking its exits"):
        found = asked.find(asked.model)
        if heads is not None:
            found.require_heads(heads, str(asked.heads))
            require_exits(heads, parse_exits(asked.layers, heads.model["layers"]))
        judge = None
        if asked.reference is not None:
            judge = find_model(
                asked.reference,
                (),
                dtype=found.dtype,
                trust_remote_code=asked.trust_remote_code,
                device=asked.device,
            )
        model = load_for_tracing(found, [work], stream=asked.stream, memory=asked.memory_bytes)
        return model, None if judge is None else judge.load()


def _lines(trace: Trace, output: Path) -> list[str]:
    """How much was traced, what was left out, and what is to be said of it."""
    from offramp.report.formats import counted

    valid = [document for document in trace.documents if document.valid]
    left_out = [document for document in trace.documents if not document.valid]
    return [
        f"{counted(trace.token_count, 'token')} of {counted(len(valid), 'document')} at "
        f"{counted(len(trace.exits), 'exit')}: {output}",
        *[f"document {document.id} is left out: {document.reason}" for document in left_out],
        *trace.provenance["notes"],
    ]


def _summary(trace: Trace, output: Path, *, streamed: bool) -> dict[str, Any]:
    """The same as JSON."""
    return {
        "trace": str(output),
        "tokens": trace.token_count,
        "documents": sum(document.valid for document in trace.documents),
        "left_out": [
            {"id": document.id, "reason": document.reason}
            for document in trace.documents
            if not document.valid
        ],
        "exits": trace.exits.tolist(),
        "facts": list(trace.fact_names),
        "streamed": streamed,
        "notes": trace.provenance["notes"],
        "request_fingerprint": trace.provenance["request_fingerprint"],
    }
