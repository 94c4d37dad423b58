"""The token sequences that a trace was made of, prompts included, and batches of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.commands import command_for
from offramp.errors import InputError
from offramp.heads.exit_heads import ExitHeads
from offramp.kit.given import Given, GivenIds, given_of
from offramp.models.identity import shown_name
from offramp.models.model import Model
from offramp.tracing.trace import Trace, with_maps
from offramp.tuning.floor import reference_top1
from offramp.workloads.packing import encode_prompt
from offramp.workloads.registry import load_workload
from offramp.workloads.workload import Document, Workload


@dataclass(frozen=True)
class TracedSequence:
    """One sequence that the model saw."""

    document: int
    """Its place in `Trace.documents`."""
    ids: tuple[int, ...]
    """All tokens, what stands in front (BOS, a prompt) included; the last one is that of the last row."""
    next_token: int
    """The token observed after it."""
    first_row: int
    """Position of the first row."""
    rows: NDArray[np.int64]
    """int64 [length - first_row], the trace's rows of the positions from there on."""

    @property
    def given(self) -> Given | None:
        """As of the document."""
        return given_of(self.ids)

    @property
    def length(self) -> int:
        """Positions."""
        return len(self.ids)


def traced_sequences(
    model: Model, trace: Trace, workload: Workload | None = None
) -> tuple[TracedSequence, ...]:
    """Every sequence of a trace, in the order of its rows; a document longer than a context has several.

    workload: where prompts (generation mode) and sources are read again; by default it is loaded by its name.

    Raises InputError for a trace of another model, and for prompts that can no longer be had.
    """
    require_model(model, trace)
    if not trace.token_count:
        return ()
    starts = _starts(trace)
    documents: Mapping[str, Document] = {}
    pictured = model.reads == "image" and len(model.front()) != int(trace.position[starts[0]])
    if model.reads_sources or pictured or bool(trace.generated.any()):
        workload = _documents_of(trace, workload)
        documents = {document.id: document for document in workload.documents}
    prompts = _prompts(model, trace, workload) if workload and bool(trace.generated.any()) else {}
    sequences = []
    for start, end in zip(starts, np.append(starts[1:], trace.token_count), strict=True):
        document, first = int(trace.document[start]), int(trace.position[start])
        given = given_of(documents.get(trace.documents[document].id))
        front = model.front(given)
        if bool(trace.generated[start]):
            front = prompts[trace.documents[document].id]
        if len(front) != first:
            raise _changed(trace, document)
        rows = np.arange(start, end, dtype=np.int64)
        ids = GivenIds.of((*front, *trace.token[rows].tolist()), given)
        sequences.append(TracedSequence(document, ids, int(trace.next_token[end - 1]), first, rows))
    return tuple(sequences)


def require_model(model: Model, trace: Trace) -> None:
    """Raise InputError for a trace of another model, or of the same one with other transforms."""
    traced = trace.request.get("model") or {}
    if traced.get("fingerprint") != model.identity.fingerprint:
        name, text = model.shown_name, str((trace.request.get("workload") or {}).get("name", "prose"))
        again = command_for("trace", model.described, workload=text, output="trace")
        changed = traced.get("name") == name
        raise InputError(
            f"the weights, settings or tokenizer of {name} changed since it was traced"
            if changed
            else f"the trace is of another model, {traced.get('name', 'without a name')}",
            where=str(trace.folder or "the trace"),
            fix=f"trace {'it again as it is now' if changed else 'this one'}: "
            + ("offramp.trace(model, ...)" if model.source is None else again),
        )


def reference_of(trace: Trace) -> dict[str, Any]:
    """The model whose choices a trace keeps beside its own: name, fingerprint, dtype and source, if kept.

    Of a transformed model it is that model untransformed. Raises InputError for a trace that keeps none's.
    """
    reference_top1(trace)  # refuses it
    request = trace.request
    model, transforms = request["model"], request["model"].get("transforms")
    if not transforms:
        return dict(request["reference"])
    return {
        "name": str(model["name"]).removesuffix(shown_name("", transforms)),
        "fingerprint": model["base_fingerprint"],
        "dtype": request["dtype"],
        "source": model["source"],
    }


def require_reference(fingerprint: str, dtype: str, trace: Trace) -> None:
    """Refuse another model than the one whose choices a trace keeps. Raises InputError."""
    kept = reference_of(trace)
    if (fingerprint, dtype) != (kept["fingerprint"], kept["dtype"]):
        raise InputError(
            f"the reference of the trace is another model, {kept['name']} in {kept['dtype']}",
            where=f"reference= (--reference), for {trace.folder or 'the trace'}",
            fix="give that model, or trace again with this one: offramp trace --reference",
        )


def _starts(trace: Trace) -> NDArray[np.int64]:
    """The first row of every sequence: where the document changes or positions begin again."""
    goes_on = (np.diff(trace.document) == 0) & (np.diff(trace.position) == 1)
    return np.flatnonzero(np.concatenate([[True], ~goes_on])).astype(np.int64)


def _documents_of(trace: Trace, workload: Workload | None) -> Workload:
    """What was traced, loaded by its name unless it is given. Raises InputError for other documents."""
    described = trace.request.get("workload") or {}
    if workload is None:
        workload = load_workload(str(described.get("name", "")))
    if workload.fingerprint != described.get("fingerprint"):
        raise InputError(
            f"the prompts of {described.get('name', 'the workload')} are not those that were traced",
            where=str(trace.folder or "the trace"),
            fix="give the workload as it was then, or trace again",
        )
    return workload


def _prompts(model: Model, trace: Trace, workload: Workload) -> Mapping[str, tuple[int, ...]]:
    """The prompt of every traced document, as token ids, by the document's id."""
    encode = model.encode_chat if workload.chat else model.encode
    wanted = {trace.documents[int(place)].id for place in np.unique(trace.document)}
    return {
        document.id: encode_prompt(encode, document, workload.prompt_tokens)
        for document in workload.documents
        if document.id in wanted
    }


def _changed(trace: Trace, document: int) -> InputError:
    return InputError(
        "what stands in front of a traced document is another length now",
        where=f"{trace.documents[document].id} in {trace.folder or 'the trace'}",
        fix="trace again with this tokenizer",
    )


TOKENS_AT_ONCE = 2048
"""Positions of one batch, padding included: wide enough for the processor, small enough for its memory."""


@dataclass(frozen=True)
class Batch:
    """Some sequences of one forward pass."""

    ids: Tensor
    """int64 [batch, positions]."""
    sequences: tuple[TracedSequence, ...]
    first: tuple[int, ...]
    """Per sequence, the first position that the policy is asked about."""
    places: NDArray[np.int64]
    """int64 [decided], where the decided positions lie in [batch x positions], sequence by sequence."""
    rows: NDArray[np.int64]
    """int64 [decided], the trace's rows of the same."""
    index: NDArray[np.int64]
    """int64 [decided], decided positions of the same sequence before each."""


def first_decided(sequence: TracedSequence, prompt_tokens: int) -> int:
    """The first position that the policy is asked about: what is in front runs whole, as a prompt does."""
    return min(max(1, sequence.first_row, prompt_tokens), sequence.length)


def make_batches(
    sequences: Sequence[TracedSequence], prompt_tokens: int, device: torch.device
) -> tuple[Batch, ...]:
    """All sequences, those of like lengths together."""
    ordered = sorted(sequences, key=lambda sequence: sequence.length)
    batches: list[list[TracedSequence]] = []
    for sequence in ordered:
        if batches and (len(batches[-1]) + 1) * sequence.length <= TOKENS_AT_ONCE:
            batches[-1].append(sequence)
        else:
            batches.append([sequence])
    return tuple(_batch(tuple(batch), prompt_tokens, device) for batch in batches)


def _batch(sequences: tuple[TracedSequence, ...], prompt_tokens: int, device: torch.device) -> Batch:
    longest = max(sequence.length for sequence in sequences)
    # Padded with a token of the sequence itself: one that the model surely has.
    ids = [[*sequence.ids, *[sequence.ids[-1]] * (longest - sequence.length)] for sequence in sequences]
    first = tuple(first_decided(sequence, prompt_tokens) for sequence in sequences)
    places, rows, index = [], [], []
    for row, (sequence, start) in enumerate(zip(sequences, first, strict=True)):
        positions = np.arange(start, sequence.length)
        places.append(row * longest + positions)
        rows.append(sequence.rows[positions - sequence.first_row])
        index.append(positions - start)
    return Batch(
        ids=torch.tensor(ids, device=device),
        sequences=sequences,
        first=first,
        places=np.concatenate(places).astype(np.int64),
        rows=np.concatenate(rows).astype(np.int64),
        index=np.concatenate(index).astype(np.int64),
    )


def with_maps_of(trace: Trace, heads: ExitHeads | None) -> Trace:
    """The trace as if made with these heads, whose K,V maps are priced; itself if they hold none."""
    return trace if heads is None or heads.kv_maps is None else with_maps(trace, heads)
