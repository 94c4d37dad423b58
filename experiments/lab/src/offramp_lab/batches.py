"""The order in which a training reads its text: by seed and step alone, so that it can go on anywhere."""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp import InputError
from offramp_lab.sources import Part
from offramp_lab.text import GENERATED, NATURAL_TOKENS, LabText, Tokens

BEGINNING_ID = 0
"""Of the token that every document begins with."""


def natural_starts(tokens: Tokens, context: int) -> NDArray[np.int64]:
    """Where sequences of `context` tokens begin that follow each other through a text: int64 [sequences]."""
    return np.arange(0, len(tokens) - context, context, dtype=np.int64)


def generated_starts(tokens: Tokens, context: int) -> NDArray[np.int64]:
    """Where sequences begin in generated text: with a document, as without its beginning nothing follows.

    Each begins with the first document that the one before does not hold whole. int64 [sequences].
    """
    begins = np.flatnonzero(tokens == BEGINNING_ID)
    ends = np.append(begins[1:], len(tokens))
    starts = []
    place = 0
    while place < len(begins) and begins[place] + context < len(tokens):
        starts.append(begins[place])
        whole = int(np.searchsorted(ends, begins[place] + context, side="right"))
        place = max(whole, place + 1)
    return np.array(starts, dtype=np.int64)


@dataclass(frozen=True)
class Batches:
    """Sequences of a text to train on, of `context` tokens and the one behind them.

    tokens: uint16 [tokens], natural and then generated ones. starts: int64 [sequences]. Each pass through all
    of them has an order of its own.
    """

    tokens: Tokens
    starts: NDArray[np.int64]
    context: int
    batch: int
    seed: int

    @classmethod
    def of(cls, text: LabText, context: int, batch: int, seed: int) -> Batches:
        """Of the part that is trained on, generated ones for no larger a share than the text has of them.

        Raises InputError for too little text for one step.
        """
        natural, generated = (text.tokens("train", which) for which in (NATURAL_TOKENS, GENERATED))
        of_natural, of_generated = natural_starts(natural, context), generated_starts(generated, context)
        # Those that begin with a document read much text twice: all would be a third in place of a quarter.
        most = max(1, len(of_natural) * len(generated) // len(natural))
        starts = (of_natural, of_generated[:most] + len(natural))
        found = cls(np.concatenate([natural, generated]), np.concatenate(starts), context, batch, seed)
        if len(found.starts) < batch:
            raise InputError(
                f"the text has {len(found.starts)} sequences of {context} tokens, and one step takes {batch}",
                where=str(text.folder),
                fix="add text, or lower batch or context",
            )
        return found

    def sequences(self, step: int) -> NDArray[np.int64]:
        """Of one step from 0: int64 [batch, context + 1]."""
        first = step * self.batch
        places = [self._place(number) for number in range(first, first + self.batch)]
        return sequences_at(self.tokens, self.starts[places], self.context)

    def _place(self, number: int) -> int:
        passes, place = divmod(number, len(self.starts))
        return int(_order(len(self.starts), self.seed, passes)[place])


@functools.lru_cache(maxsize=4)
def _order(count: int, seed: int, passes: int) -> NDArray[np.int64]:
    """Of the sequences in one pass through all: int64 [count]."""
    return np.random.default_rng((seed, passes)).permutation(count)


def sequences_at(tokens: Tokens, starts: NDArray[np.int64], context: int) -> NDArray[np.int64]:
    """The tokens from each start on: int64 [starts, context + 1]."""
    found: NDArray[np.int64] = tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    return found


@dataclass(frozen=True)
class HeldOut:
    """The same held-out sequences for every model, spread over a part of a text.

    sequences: int64 [sequences, context + 1]. steps: uint8 [sequences, context + 1], of generated text what
    it takes to know each token, 0 where that is not known; None of natural text.
    """

    sequences: NDArray[np.int64]
    steps: NDArray[np.uint8] | None = None

    @classmethod
    def of(cls, text: LabText, part: Part, which: str, context: int, most: int) -> HeldOut:
        """Of natural or generated text, `most` tokens at most. Raises InputError for less than a sequence."""
        tokens = text.tokens(part, which)
        starts = (natural_starts if which == NATURAL_TOKENS else generated_starts)(tokens, context)
        if not len(starts):
            raise InputError(
                f"the {which} text of the part {part} has {len(tokens)} tokens, and a sequence {context + 1}",
                where=str(text.folder),
                fix="add text, or lower context",
            )
        order = np.random.default_rng(0).permutation(len(starts))[: max(1, most // context)]
        chosen = starts[np.sort(order)]
        steps = None
        if which == GENERATED:
            steps = text.steps(part)[chosen[:, None] + np.arange(context + 1)]
        return cls(sequences_at(tokens, chosen, context), steps)
