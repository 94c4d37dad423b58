"""Traced sequences side by side: padded on the right, so that causal layers never see the padding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.decoding.rerun.sequences import TracedSequence

TOKENS_AT_ONCE = 2048
"""Positions of one batch, padding included: wide enough for the processor, small enough for its memory."""


@dataclass(frozen=True)
class Batch:
    """Some sequences of one forward pass.

    ids: int64 [batch, positions]. first: per sequence, the first position that the policy is asked about.
    places: int64 [decided], where the decided positions lie in [batch x positions], sequence by sequence.
    rows: int64 [decided], the trace's rows of the same. index: int64 [decided], decided positions of the same
    sequence before each.
    """

    ids: Tensor
    sequences: tuple[TracedSequence, ...]
    first: tuple[int, ...]
    places: NDArray[np.int64]
    rows: NDArray[np.int64]
    index: NDArray[np.int64]


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
    return tuple(_batch(tuple(some), prompt_tokens, device) for some in batches)


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
