"""Sequences that the model itself is trained on: their rows, their tokens, the original model's states."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from offramp.models.model import Model
from offramp.training.layer_pass import run_layers
from offramp.workloads.packing import Context

KEPT_BYTES = 1 << 30
"""States of the original model that are kept; those of further sequences are computed again each time."""

UNKNOWN = -100
"""In the place of a token behind the last one that is known."""


class OriginalStates:
    """What the original model's last layer gives of some sequences, computed when first asked for, and kept.

    Kept are states and no logits: of `smollm2` 2.3 kB a token instead of 197 kB, and the head that makes the
    ones of the other takes a fifth of what the layers take.
    """

    def __init__(self, model: Model, contexts: Sequence[Context], most_bytes: int = KEPT_BYTES) -> None:
        self.model, self.contexts = model, contexts
        self._left = most_bytes
        self._kept: dict[int, Tensor] = {}

    def of(self, place: int) -> Tensor:
        """Of the rows of one sequence [rows, hidden]."""
        if place in self._kept:
            return self._kept[place]
        context, last = self.contexts[place], self.model.layers
        with torch.no_grad():
            found = run_layers(self.model.stack, torch.tensor(context.ids), (last,))
        states = found[last][first_row(context) :].clone()
        if states.nbytes <= self._left:
            self._kept[place] = states
            self._left -= states.nbytes
        return states


def first_row(context: Context) -> int:
    """The first position that is looked at: not that which decoding never lets leave."""
    return max(1, context.first_row)


def row_count(context: Context) -> int:
    """Positions that are looked at."""
    return len(context.ids) - first_row(context)


def tokens_ahead(context: Context, ahead: int) -> list[int]:
    """Of every row the token so many places further on, UNKNOWN behind the last."""
    known = [*context.ids, context.next_token]
    rows = range(first_row(context), len(context.ids))
    return [known[row + ahead] if row + ahead < len(known) else UNKNOWN for row in rows]


def cross_entropy(logits: Tensor, contexts: Sequence[Context], ahead: int) -> Tensor:
    """Mean over the rows whose token is known, nats, a scalar; 0 if there is none.

    logits: float32 [rows of all contexts, vocabulary]. ahead: 1 for the next token.
    """
    tokens = torch.tensor([token for one in contexts for token in tokens_ahead(one, ahead)])
    known = max(1, int((tokens != UNKNOWN).sum()))
    total = F.cross_entropy(logits, tokens.to(logits.device), ignore_index=UNKNOWN, reduction="sum")
    return total / known
