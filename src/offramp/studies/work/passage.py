"""A passage and a grid of predictions, cut from a trace with the tokenizer's decoder alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from offramp.display import ShownAsHtml
from offramp.errors import InputError
from offramp.scoring.components import first_match, saturation
from offramp.studies.manifest import study_file
from offramp.tracing.trace import Trace

if TYPE_CHECKING:
    from offramp.models.model import Model

Decode = Callable[[int], str]
PASSAGE = "passage.json"
PASSAGE_TOKENS = 140
GRID_POSITIONS = 40
GRID_EXITS = 40


@dataclass(frozen=True)
class PassageToken:
    """One token of a passage and what every exit said in its place.

    piece: the token as text. full_prediction: what the full model says there (the same in generation mode).
    first_match_exit, saturation_exit: layer of the first exit that agrees with the full model, and of the
    first from which all later ones agree. predictions, max_prob, agrees: one per exit of the passage.
    """

    piece: str
    full_prediction: str
    first_match_exit: int
    saturation_exit: int
    predictions: tuple[str, ...]
    max_prob: tuple[float, ...]
    agrees: tuple[bool, ...]


@dataclass(frozen=True)
class Passage:
    """The start of one document, token by token.

    document: its id. exits: the traced layers. lead: the input before the first token, as text.
    document_tokens: how many traced tokens the whole document has.
    """

    document: str
    exits: tuple[int, ...]
    lead: str
    tokens: tuple[PassageToken, ...]
    document_tokens: int


@dataclass(frozen=True)
class PredictionGrid:
    """What the model would say at every layer and position of one document's start.

    inputs, targets: the token read and the one that follows, per position. pieces, max_prob, agrees: rows are
    exits (in the order of `exits`), columns positions. saturation_exits: one layer per position.
    traced_exits: how many exits the trace has; `exits` may show fewer.
    """

    document: str
    exits: tuple[int, ...]
    traced_exits: int
    inputs: tuple[str, ...]
    targets: tuple[str, ...]
    pieces: tuple[tuple[str, ...], ...]
    max_prob: tuple[tuple[float, ...], ...]
    agrees: tuple[tuple[bool, ...], ...]
    saturation_exits: tuple[int, ...]


@dataclass(frozen=True)
class Passages(ShownAsHtml):
    """What a page shows of one trace word by word."""

    passage: Passage
    grid: PredictionGrid


FILE = study_file(Passages)


def passages_of(trace: Trace, decode: Decode) -> Passages:
    """Of the trace's typical document. Raises InputError if it has no tokens."""
    document = typical_document(trace)
    return Passages(passage_from_trace(trace, decode, document), grid_from_trace(trace, decode, document))


def passages(model: Model, trace: Trace) -> Passages:
    """A typical document of a trace word by word: coloured by where each could have stopped, in a notebook.

    Raises InputError if the trace has no tokens, or is of another model.

    >>> offramp.passages(model, trace).passage.exits
    (1, 2, 3, 4)
    """
    from offramp.decoding.rerun.sequences import require_model  # a page needs no torch, a model has it

    require_model(model, trace)
    return passages_of(trace, lambda token: model.decode([token]))


def typical_document(trace: Trace) -> int:
    """The document of median mean saturation exit, so that the passage shown is not hand-picked.

    Only documents of at least half the longest one's tokens are considered.
    """
    depth = trace.exits[saturation(trace.agreement)]
    count = np.bincount(trace.document, minlength=len(trace.documents))
    if not count.any():
        raise InputError("the trace has no tokens to show", fix="trace a workload with at least one document")
    total = np.bincount(trace.document, weights=depth, minlength=len(trace.documents))
    candidates = np.flatnonzero(2 * count >= count.max())
    order = candidates[np.argsort(total[candidates] / count[candidates], kind="stable")]
    return int(order[(len(order) - 1) // 2])


def document_rows(trace: Trace, document: int, limit: int) -> NDArray[np.int64]:
    """The first rows of one document, at most `limit`.

    Raises InputError if the document has no traced token.
    """
    rows = np.flatnonzero(trace.document == document)[:limit]
    if not len(rows):
        raise InputError(f"document {document} has no traced tokens", fix="choose a valid document")
    return rows


def passage_from_trace(
    trace: Trace, decode: Decode, document: int, *, max_tokens: int = PASSAGE_TOKENS
) -> Passage:
    """The start of one document with what every exit says, token by token.

    decode: token id to text; document: index into `trace.documents`.
    """
    rows = document_rows(trace, document, max_tokens)
    agreement = trace.agreement[rows]
    top1, max_prob = trace.fact("top1")[rows], trace.fact("max_prob")[rows]
    first = trace.exits[first_match(agreement)]
    settled = trace.exits[saturation(agreement)]
    tokens = tuple(
        PassageToken(
            piece=decode(int(trace.next_token[row])),
            full_prediction=decode(int(top1[i, -1])),
            first_match_exit=int(first[i]),
            saturation_exit=int(settled[i]),
            predictions=tuple(decode(int(token)) for token in top1[i]),
            max_prob=tuple(float(value) for value in max_prob[i]),
            agrees=tuple(bool(value) for value in agreement[i]),
        )
        for i, row in enumerate(rows)
    )
    return Passage(
        document=trace.documents[document].id,
        exits=tuple(int(layer) for layer in trace.exits),
        lead=decode(int(trace.token[rows[0]])),
        tokens=tokens,
        document_tokens=int((trace.document == document).sum()),
    )


def shown_exits(count: int, limit: int = GRID_EXITS) -> NDArray[np.int64]:
    """Indices of at most `limit` exits, evenly spaced, the first and the last among them."""
    if count <= limit:
        return np.arange(count, dtype=np.int64)
    return np.unique(np.linspace(0, count - 1, limit).round().astype(np.int64))


def grid_from_trace(
    trace: Trace, decode: Decode, document: int, *, max_positions: int = GRID_POSITIONS
) -> PredictionGrid:
    """The layer x position picture of one document's start; at most 40 exits, evenly spaced, are shown."""
    rows = document_rows(trace, document, max_positions)
    shown = shown_exits(len(trace.exits))
    agreement = trace.agreement[rows]
    top1, max_prob = trace.fact("top1")[rows], trace.fact("max_prob")[rows]
    return PredictionGrid(
        document=trace.documents[document].id,
        exits=tuple(int(layer) for layer in trace.exits[shown]),
        traced_exits=len(trace.exits),
        inputs=tuple(decode(int(token)) for token in trace.token[rows]),
        targets=tuple(decode(int(token)) for token in trace.next_token[rows]),
        pieces=tuple(tuple(decode(int(token)) for token in top1[:, e]) for e in shown),
        max_prob=tuple(tuple(float(value) for value in max_prob[:, e]) for e in shown),
        agrees=tuple(tuple(bool(value) for value in agreement[:, e]) for e in shown),
        saturation_exits=tuple(int(layer) for layer in trace.exits[saturation(agreement)]),
    )
