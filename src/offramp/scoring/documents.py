"""The documents of a trace as the unit of every interval: their rows, their sums, their order, their text."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.files import sha256_of_text
from offramp.kit.numbers import Whole
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
    return {trace.documents[int(number)].id for number in np.unique(trace.document)}


def of_documents(trace: Trace, ids: Collection[str]) -> Trace:
    """The rows of the documents with some ids."""
    places = [number for number, document in enumerate(trace.documents) if document.id in ids]
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


Lengths = tuple[Whole, Whole, Whole]
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


def require_numbers(trace: Trace, fact: str, broken: NDArray[np.bool_], at: str = "") -> None:
    """Raise InputError if a fact is not a number for some tokens, with the first one's document and row.

    broken: bool [tokens]. at: which exit, to follow their number.
    """
    rows = np.flatnonzero(broken)
    if rows.size:
        document = trace.documents[int(trace.document[rows[0]])].id
        raise InputError(
            f"{fact} is not a number for {rows.size} tokens{at and ' ' + at}",
            where=f"{document}, row {int(rows[0])} of {trace.folder or 'the trace'}",
            fix="trace the model again; a document with a broken logit should have been left out",
        )


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


PARTIAL = "\N{REPLACEMENT CHARACTER}"

Decode = Callable[[Sequence[int]], str]
"""Token ids to text, special tokens left out."""


@dataclass(frozen=True)
class TextSize:
    """Bytes in UTF-8, characters, and tokens of some observed text."""

    bytes: Whole
    characters: Whole
    tokens: Whole

    def __add__(self, other: TextSize) -> TextSize:
        """Both texts together."""
        return TextSize(
            self.bytes + other.bytes, self.characters + other.characters, self.tokens + other.tokens
        )


NOTHING = TextSize(0, 0, 0)


def text_sizes(trace: Trace, decode: Decode) -> dict[str, TextSize]:
    """The observed text of every document with rows, by its id: traces of other tokenizers compare by it.

    What is counted are the tokens whose probability the trace holds (`next_token` of every row). A run of
    consecutive rows is decoded behind the token of its first row, which was not observed, and that token's
    own text taken off, so that spaces at the seam come out right. Special tokens (an end token, the marks of
    a chat template) are no text: they count nothing. A character is counted where the last of its bytes was
    observed. If a run ends within a character, the tokenizer writes U+FFFD for the bytes it has: each such
    mark at the end counts as one byte and as no character, up to two bytes too few (a U+FFFD of the text
    itself, too).
    """
    found: dict[str, TextSize] = {}
    for rows in runs_of(trace):
        first = int(trace.token[rows[0]])
        observed = trace.next_token[rows].tolist()
        size = observed_size(decode, first, observed)
        identity = trace.documents[int(trace.document[rows[0]])].id
        found[identity] = found.get(identity, NOTHING) + size
    return found


def runs_of(trace: Trace) -> Iterator[NDArray[np.int64]]:
    """The rows of every stretch of text without a gap: each row's token is the one before's next token."""
    follows = (
        (trace.document[1:] == trace.document[:-1])
        & (trace.position[1:] == trace.position[:-1] + 1)
        & (trace.token[1:] == trace.next_token[:-1])
    )
    rows = np.arange(trace.token_count)
    yield from np.split(rows, np.flatnonzero(~follows) + 1) if trace.token_count else ()


def observed_size(decode: Decode, first: int, observed: Sequence[int]) -> TextSize:
    """The size of a run of observed tokens behind one that was not."""
    (bytes_in, characters_in), (bytes_before, characters_before) = (
        _size(decode(ids)) for ids in ([first, *observed], [first])
    )
    return TextSize(bytes_in - bytes_before, characters_in - characters_before, len(observed))


def _size(text: str) -> tuple[int, int]:
    """Bytes and characters, marks of a partial character at the end as one byte each."""
    whole = text.rstrip(PARTIAL)
    return len(whole.encode()) + len(text) - len(whole), len(whole)


def bits_per_byte(trace: Trace, size: int, place: int = -1) -> float | None:
    """Summed NLL of the observed tokens, in bits, over the text's bytes; None without any.

    Unlike nats per token, it does not depend on how a tokenizer cuts the text. place: of the exit among the
    traced ones, by default the last.
    """
    nats = float(np.sum(trace.fact("nll")[:, place], dtype=np.float64))
    return nats / math.log(2.0) / size if size else None
