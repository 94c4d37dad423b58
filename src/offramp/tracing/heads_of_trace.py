"""What a trace says of the exit heads that it was made with, and of texts that they have seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from offramp.errors import InputError
from offramp.heads.described import describe_heads, reading_of
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import require_base
from offramp.heads.trained_model import TRAINED_ON
from offramp.tracing.trace import Trace
from offramp.tracing.trace_files import DocumentRecord, DocumentText
from offramp.workloads.shared_text import Sketch, read_sketch, shares_text, sketches_of, write_sketch
from offramp.workloads.workload import Workload


def heads_documents(trace: Trace) -> frozenset[str]:
    """Ids of the trace's documents that its exit heads, or the model itself as far as that is known, were
    trained on, or that share text with such."""
    workload = trace.request.get("workload", {}).get("fingerprint")
    heads, model = (trace.request.get(name) or {} for name in ("heads", "model"))
    seen = (heads.get("documents") or {}, model.get(TRAINED_ON) or {})
    own = {identity for documents in seen for identity in documents.get(workload, ())}
    return frozenset(own) | {document.id for document in trace.documents if document.heads_saw}


def with_maps(trace: Trace, heads: ExitHeads) -> Trace:
    """The same trace as if it had been made with heads that hold K,V maps: its facts are the same without.

    Raises InputError for heads without maps, of another model, or through which exits would be read in
    another way than in the trace.
    """
    if heads.kv_maps is None:
        raise InputError(
            "the exit heads hold no K,V maps",
            where="heads",
            fix="fit some: offramp heads fit MODEL --workload W --kv-maps EXITS -o FILE",
        )
    request = trace.request
    if request.get("model"):
        require_base(heads, request["model"])
    now = describe_heads(heads)
    if reading_of(request.get("heads")) != reading_of(now):
        raise InputError(
            "the trace's exits were read in another way than through these exit heads",
            where=str(trace.folder or "the trace"),
            fix="add the maps to the heads that the trace was made with (offramp heads fit --add-to FILE)",
        )
    return trace.of_request({**request, "heads": now}, _seen_by(trace.documents, heads))


def _seen_by(documents: Sequence[DocumentRecord], heads: ExitHeads) -> tuple[DocumentRecord, ...]:
    """The documents, those known that share text with one that the heads' fitting saw."""
    kept = [place for place, document in enumerate(documents) if document.text is not None]
    sketches = [read_sketch(str(documents[place].text)) for place in kept]
    seen = shares_text(sketches, heads.seen_texts or ())
    saw = {place for place, shares in zip(kept, seen, strict=True) if shares}
    return tuple(
        replace(document, heads_saw=document.heads_saw or place in saw)
        for place, document in enumerate(documents)
    )


def document_texts(
    workload: Workload, ids: Sequence[str], heads: ExitHeads | None, trained: Sequence[Sketch] = ()
) -> tuple[DocumentText, ...]:
    """What is kept of the documents with these ids. trained: texts that the model itself was trained on."""
    sketches = sketches_of(workload, ids)
    saw = shares_text(sketches, (*((heads.seen_texts if heads is not None else None) or ()), *trained))
    return tuple(
        DocumentText(write_sketch(sketch), bool(seen)) for sketch, seen in zip(sketches, saw, strict=True)
    )
