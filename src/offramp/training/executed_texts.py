"""Whole sequences to train on as they are executed, and their exact states, kept in memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from offramp.models.model import Model
from offramp.workloads.packing import Context

KEPT_BYTES = 1 << 30
"""States that are kept; those of further sequences are computed again each time."""


@dataclass(frozen=True)
class Texts:
    """Some sequences side by side, filled up on the right: attention is causal, so that nothing sees it.

    ids: int64 [batch, positions]. may_leave: bool [batch, positions], tokens that a policy is asked about: of
    the sequence, behind its first position and what stands in front of it. hidden: states after the first
    exit's layer [batch, positions, hidden]. final: after layer L. signal: float32 [batch, positions], what
    decides who leaves at the first exit.
    """

    ids: Tensor
    may_leave: Tensor
    hidden: Tensor
    final: Tensor
    signal: Tensor

    @property
    def positions(self) -> int:
        """Of every sequence, those it is filled up with included."""
        return self.ids.shape[1]


Signal = Callable[[Tensor], Tensor]
"""Of states [rows, hidden] at the first exit: float32 [rows], large where a token is to leave."""


class KnownTexts:
    """Contexts whose states after the first exit's layer and after L are computed when first asked for."""

    def __init__(
        self,
        model: Model,
        contexts: Sequence[Context],
        exit: int,
        signal: Signal,
        most_bytes: int = KEPT_BYTES,
    ) -> None:
        self.model, self.contexts, self.exit, self.signal = model, contexts, exit, signal
        self._left = most_bytes
        self._kept: dict[int, tuple[Tensor, ...]] = {}

    def __len__(self) -> int:
        return len(self.contexts)

    @property
    def tokens(self) -> int:
        """That a policy is asked about."""
        return sum(len(one.ids) - _first(one) for one in self.contexts)

    def draw(self, count: int, generator: np.random.Generator) -> Texts:
        """Some at random, none twice."""
        return self.take(generator.choice(len(self), min(count, len(self)), replace=False).tolist())

    def take(self, places: Sequence[int]) -> Texts:
        """Those at some places."""
        contexts = [self.contexts[place] for place in places]
        longest = max(len(one.ids) for one in contexts)
        device = self.model.stack.device
        # Filled up with a token of the sequence itself: one that the model surely has.
        ids = [[*one.ids, *[one.ids[-1]] * (longest - len(one.ids))] for one in contexts]
        may = [[_first(one) <= place < len(one.ids) for place in range(longest)] for one in contexts]
        known = [self._known(place) for place in places]
        hidden, final, signal = (
            torch.stack([_filled(one, longest) for one in column]) for column in zip(*known, strict=True)
        )
        return Texts(
            torch.tensor(ids, device=device), torch.tensor(may, device=device), hidden, final, signal
        )

    def _known(self, place: int) -> tuple[Tensor, ...]:
        """Of one sequence: states of the exit and of L [length, hidden], the signal [length]."""
        if place in self._kept:
            return self._kept[place]
        found: dict[int, Tensor] = {}
        wanted = (self.exit, self.model.layers)

        def on_layer(layer: int, before: Tensor, after: Tensor) -> None:
            if layer + 1 in wanted:
                found[layer + 1] = after[0].clone()

        self.model.stack.capture(torch.tensor([self.contexts[place].ids]), on_layer)
        hidden = found[self.exit]
        known = hidden, found[self.model.layers].to(hidden.device), self.signal(hidden)
        size = sum(one.nbytes for one in known)
        if size <= self._left:
            self._kept[place] = known
            self._left -= size
        return known


def _first(context: Context) -> int:
    """The first position that may leave, as `decoding.rerun.sequences.first_decided` has it."""
    return max(1, context.first_row)


def _filled(states: Tensor, length: int) -> Tensor:
    return torch.cat([states, states[-1:].expand(length - len(states), *states.shape[1:])])
