"""Drift: how far decoding with forced tokens strays from the replay of the same policy on the same tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.decoding.generation.result import Generation
from offramp.errors import InputError
from offramp.policies.results import ReplayResult
from offramp.tracing.trace import Trace


@dataclass(frozen=True)
class Drift:
    """Decoded beside replayed, token by token.

    tokens: compared ones. exits_differ: share that left elsewhere. mean_exit_difference: decoded less
    replayed exit, in layers; negative = earlier. tokens_differ: share whose chosen token is not the top-1
    that the trace holds at the replayed exit.
    """

    tokens: int
    exits_differ: float
    mean_exit_difference: float
    tokens_differ: float


def drift_of(
    exits: Sequence[int] | NDArray[np.int64],
    chosen: Sequence[int] | NDArray[np.int64],
    replayed_exits: Sequence[int] | NDArray[np.int64],
    replayed_top1: Sequence[int] | NDArray[np.integer],
) -> Drift:
    """Compare tokens in the same order, each list [tokens].

    exits, chosen: of generation with forced tokens. replayed_exits, replayed_top1: of the trace's rows.

    Raises InputError if the lists differ in length or are empty.
    """
    lists = [np.asarray(values) for values in (exits, chosen, replayed_exits, replayed_top1)]
    lengths = {len(values) for values in lists}
    if len(lengths) != 1 or 0 in lengths:
        raise InputError(
            f"decoded and replayed tokens do not match: {', '.join(str(len(values)) for values in lists)}",
            where="drift",
            fix="force the traced tokens, and compare the same ones",
        )
    decoded, said, replayed, top1 = lists
    return Drift(
        tokens=len(decoded),
        exits_differ=float(np.mean(decoded != replayed)),
        mean_exit_difference=float(np.mean(decoded - replayed)),
        tokens_differ=float(np.mean(said != top1)),
    )


def drift(trace: Trace, replayed: ReplayResult, generations: Mapping[int, Generation]) -> Drift:
    """The drift of generations that were forced to follow documents of a trace.

    trace: as the policy sees it (`offramp.policies.short_list.seen_by`). generations: by the document's place
    in `trace.documents`; each began with the document's first tokens as its prompt and was forced to continue
    with the next ones. Its first new token is left out: it comes out of the prompt, at full depth.

    Raises InputError if a row of the trace is missing for a token.
    """
    columns: list[tuple[NDArray[np.int64], ...]] = []
    for document, generation in generations.items():
        rows = _rows(trace, document, generation)
        exits = replayed.exits[rows]
        top1 = trace.fact("top1")[rows, np.searchsorted(trace.exits, exits)].astype(np.int64)
        columns.append((generation.exits[1:], np.array(generation.chosen[1:], dtype=np.int64), exits, top1))
    if not columns:
        return drift_of([], [], [], [])
    return drift_of(*(np.concatenate(parts) for parts in zip(*columns, strict=True)))


def _rows(trace: Trace, document: int, generation: Generation) -> NDArray[np.int64]:
    """The trace's rows that predict the new tokens after the first, checked to hold the same tokens."""
    fed = np.array(generation.tokens[:-1], dtype=np.int64)
    own = np.flatnonzero(trace.document == document)
    first = generation.prompt_tokens
    rows = own[(trace.position[own] >= first) & (trace.position[own] < first + len(fed))]
    if len(rows) != len(fed) or not np.array_equal(trace.token[rows], fed):
        raise InputError(
            "a generation did not feed the tokens of the trace's document",
            where=f"document {trace.documents[document].id}",
            fix="give its first tokens as the prompt and the next ones as force_tokens",
        )
    return rows
