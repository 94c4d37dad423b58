"""What a trace keeps of its documents' texts, by which documents that share text are known later."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offramp.tracing.exit_heads import ExitHeads
from offramp.workloads.shared_text import shares_text, sketches_of, write_sketch
from offramp.workloads.workload import Workload


@dataclass(frozen=True)
class DocumentText:
    """Of one document: the sketch of its whole text, as `write_sketch` writes it, and whether it shares text
    with a document that the trace's exit heads were fitted on."""

    sketch: str
    heads_saw: bool


def document_texts(
    workload: Workload, ids: Sequence[str], heads: ExitHeads | None
) -> tuple[DocumentText, ...]:
    """What is kept of the documents with these ids."""
    sketches = sketches_of(workload, ids)
    saw = shares_text(sketches, (heads.seen_texts if heads is not None else None) or ())
    return tuple(
        DocumentText(write_sketch(sketch), bool(seen)) for sketch, seen in zip(sketches, saw, strict=True)
    )
