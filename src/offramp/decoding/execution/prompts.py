"""What is decoded to certify a policy: openings of documents, or whole prompts, that shaped nothing."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from offramp.errors import InputError
from offramp.models.model import Model
from offramp.policies.binding import heads_documents
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.trace import Trace
from offramp.tuning.splits import Roles
from offramp.workloads.packing import encode_start
from offramp.workloads.registry import load_workload
from offramp.workloads.shared_text import Sketcher, read_sketch, without_shared_text
from offramp.workloads.workload import Document, Workload

TOO_SHORT = "too short for the opening and one token more"
NO_ROOM = "too long: no room is left for the answer"
EMPTY = "empty"


@dataclass(frozen=True)
class Opening:
    """What one document is decoded from: the start of a text, or a whole prompt, as token ids.

    traced: whether the document is one of the trace.
    """

    document: str
    ids: tuple[int, ...]
    traced: bool


@dataclass(frozen=True)
class Openings:
    """Openings to certify on, in the drawn order, and those of documents for the report.

    left_out: documents that give none, counted by the reason.
    """

    certify: tuple[Opening, ...]
    report: tuple[Opening, ...]
    left_out: Mapping[str, int]


def traced_workload(trace: Trace, workload: Workload | None = None) -> Workload:
    """The documents that a trace was made of, loaded by its name unless they are given.

    Raises InputError for other documents than those that were traced, WorkloadError if they cannot be had.
    """
    described = trace.request.get("workload") or {}
    name = str(described.get("name", ""))
    if workload is None:
        workload = load_workload(name)
    if workload.fingerprint != described.get("fingerprint"):
        raise InputError(
            f"the documents of {workload.name} are not those that were traced",
            where=str(trace.folder or "the trace"),
            fix=f"give {name or 'the workload'} as it was then, or trace again",
        )
    return workload


def choose_openings(
    model: Model,
    trace: Trace,
    workload: Workload,
    roles: Roles,
    *,
    seed: int,
    prompt_tokens: int,
    new_tokens: int,
    heads: ExitHeads | None = None,
    most: int | None = None,
) -> Openings:
    """Openings of the trace's certify documents in their order, then of documents that were not traced.

    The latter come in an order drawn by `seed`. Searching, reporting and fitting heads saw none of them, and
    each document comes once. prompt_tokens: of a text, BOS included if the model puts it there; a prompt of
    generation mode is taken whole, through the chat template if the workload's is one. heads: those of the
    trace. most: to certify on.

    Raises InputError for an opening that leaves no room for the answer, whatever the document.
    """
    room = None if model.context_length is None else model.context_length - new_tokens
    if workload.mode == "text" and room is not None and prompt_tokens > room:
        raise InputError(
            f"prompts of {prompt_tokens} tokens do not leave room for {new_tokens} new tokens in the context "
            f"of {model.context_length} positions",
            where=f"--prompt-tokens for {model.shown_name}",
            fix="lower --prompt-tokens or --new-tokens",
        )
    texts = {document.id: document for document in workload.documents}
    traced = {record.id for record in trace.documents}
    encode = model.encode_chat if workload.chat else model.encode
    left_out: Counter[str] = Counter()

    def opening(document: Document) -> Opening | None:
        most = None if workload.mode == "generation" else prompt_tokens + 1
        ids = tuple(encode_start(encode, document.text, most))
        why = None
        if workload.mode == "generation":
            why = EMPTY if not ids else NO_ROOM if room is not None and len(ids) > room else None
        elif len(ids) <= prompt_tokens:
            why = TOO_SHORT
        if why is not None:
            left_out[why] += 1
            return None
        taken = ids if workload.mode == "generation" else ids[:prompt_tokens]
        return Opening(document.id, taken, document.id in traced)

    def openings(documents: Iterable[Document], most: int | None) -> tuple[Opening, ...]:
        found: list[Opening] = []
        for document in documents:
            if most is not None and len(found) >= most:
                break
            if (one := opening(document)) is not None:
                found.append(one)
        return tuple(found)

    certify = [texts[trace.documents[int(place)].id] for place in roles.certify]
    report = [texts[trace.documents[int(place)].id] for place in roles.report]
    certify += further_documents(trace, workload, seed, heads, [*roles.search, *roles.report])
    return Openings(openings(certify, most), openings(report, None), dict(left_out))


def further_documents(
    trace: Trace, workload: Workload, seed: int, heads: ExitHeads | None = None, apart: Sequence[int] = ()
) -> list[Document]:
    """Documents of the workload that were neither traced nor used to fit heads, in an order drawn by `seed`.

    They share no text either with what heads were fitted on or with the trace's documents at the places
    `apart`, as far as texts are known.
    """
    used = {record.id for record in trace.documents} | heads_documents(trace)
    free = [document for document in workload.documents if document.id not in used]
    texts = (trace.documents[int(place)].text for place in apart)
    seen = [read_sketch(text) for text in texts if text is not None]
    seen += () if heads is None else heads.seen_texts or ()
    if seen:
        free = list(without_shared_text(free, seen, Sketcher.of(workload.documents)))
    order = np.random.default_rng(seed).permutation(len(free))
    return [free[int(place)] for place in order]
