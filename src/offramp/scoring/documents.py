"""The documents of a trace as the unit of every interval: their rows, their sums, their order."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.files import sha256_of_text
from offramp.tracing.facts import FACT_BY_NAME
from offramp.tracing.trace import FactArray, Trace


@dataclass(frozen=True)
class DocumentRows:
    """Where the rows of each document lie, and the documents in an order that depends on their ids only.

    starts: int64 [documents], first row of each document, in row order; lengths: int64 [documents], its rows.
    order: int64 [documents], row order to canonical order (sorted by SHA-256 of the id), so that neither
    folds nor bootstrap draws change when documents come in another order.
    index: int64 [documents], the documents' places in `Trace.documents`, in canonical order.
    tokens: float64 [documents], traced tokens, in canonical order.
    """

    starts: NDArray[np.int64]
    lengths: NDArray[np.int64]
    order: NDArray[np.int64]
    index: NDArray[np.int64]
    tokens: NDArray[np.float64]

    @property
    def count(self) -> int:
        """Documents that have rows."""
        return len(self.starts)

    def sums(self, values: NDArray[Any]) -> NDArray[np.float64]:
        """Sums over each document's tokens: [tokens, ...] -> float64 [documents, ...], canonical order."""
        totals = np.add.reduceat(values, self.starts, axis=0, dtype=np.float64)
        return np.asarray(totals[self.order], dtype=np.float64)

    def fold_of_row(self) -> NDArray[np.bool_]:
        """The fold of each row, of two folds of documents, alternating in canonical order: bool [tokens]."""
        fold = np.empty(self.count, dtype=np.bool_)
        fold[self.order] = np.arange(self.count) % 2 == 1
        return np.repeat(fold, self.lengths)


def ids_of(trace: Trace) -> set[str]:
    """Ids of the documents with rows."""
    return {trace.documents[int(place)].id for place in np.unique(trace.document)}


def of_documents(trace: Trace, ids: Collection[str]) -> Trace:
    """The rows of the documents with some ids."""
    places = [place for place, document in enumerate(trace.documents) if document.id in ids]
    return trace.subset(np.array(places, dtype=np.int64))


def name_of(trace: Trace) -> str:
    """What an error calls a trace: its folder, or its model."""
    return str(trace.folder or trace.request.get("model", {}).get("name") or "the trace")


def document_rows(trace: Trace) -> DocumentRows:
    """The rows of each document of a trace.

    Raises InputError if the trace has no rows, or if a document's rows are not contiguous.
    """
    document = trace.document
    if len(document) == 0:
        raise InputError("the trace holds no tokens", fix="trace a workload with at least one valid document")
    starts = np.flatnonzero(np.diff(document, prepend=document[0] - 1))
    index = document[starts].astype(np.int64)
    if len(np.unique(index)) != len(index):
        raise InputError(
            "the rows of a document are not contiguous", fix="sort the rows of the trace by document"
        )
    lengths = np.diff(starts, append=len(document))
    digests = [sha256_of_text(trace.documents[place].id) for place in index]
    order = np.array(sorted(range(len(index)), key=digests.__getitem__), dtype=np.int64)
    return DocumentRows(
        starts=starts.astype(np.int64),
        lengths=lengths.astype(np.int64),
        order=order,
        index=index[order],
        tokens=lengths[order].astype(np.float64),
    )


Lengths = tuple[int, int, int]
"""Fewest, median and most tokens of some documents."""


def lengths_of(trace: Trace, places: NDArray[np.int64] | None = None) -> Lengths | None:
    """How many tokens documents of a trace give, those at some places of `Trace.documents`; None of none."""
    traced = trace if places is None else trace.subset(places)
    counts = np.bincount(traced.document)
    counts = np.sort(counts[counts > 0])
    return (int(counts[0]), int(counts[len(counts) // 2]), int(counts[-1])) if len(counts) else None


def lengths_text(lengths: Sequence[int] | None) -> str:
    """To follow "documents": " of 16 tokens", " of 9 to 16 tokens (median 14)"; nothing if not known."""
    if lengths is None:
        return ""
    fewest, median, most = lengths
    if fewest == most:
        return f" of {most:,} token{'' if most == 1 else 's'}"
    return f" of {fewest:,} to {most:,} tokens (median {median:,})"


def fact_of(trace: Trace, name: str) -> FactArray:
    """One fact, float32 or int32 [tokens, exits].

    Raises InputError, naming the fact, if the trace does not hold it (with the option that records it) or
    its shape does not fit.
    """
    try:
        values = trace.fact(name)
    except KeyError as error:
        option = FACT_BY_NAME[name].recorded_with
        raise InputError(
            f"the trace has no fact {name!r}",
            where=str(trace.folder or "the trace"),
            fix=f"trace again with {option}" if option else "trace the model again",
        ) from error
    expected = (trace.token_count, len(trace.exits))
    if values.shape != expected:
        raise InputError(
            f"fact {name!r} has the shape {values.shape}, not [tokens, exits] = {expected}",
            fix="trace the model again",
        )
    return values


def fact_sums(trace: Trace, rows: DocumentRows, name: str) -> NDArray[np.float64]:
    """Sums of one fact over each document's tokens: float64 [documents, exits], in the fact's unit.

    Raises InputError for a NaN or an infinity, naming the fact, the document and the exit: a missing value
    never becomes a part of a mean.
    """
    sums = rows.sums(fact_of(trace, name))
    damaged = np.argwhere(~np.isfinite(sums))
    if len(damaged):
        place, column = damaged[0]
        identity = trace.documents[rows.index[place]].id
        raise InputError(
            f"fact {name!r} is not finite",
            where=f"{identity}, exit {int(trace.exits[column])}",
            fix="trace the model again; a document with non-finite logits is left out by the tracer",
        )
    return sums
