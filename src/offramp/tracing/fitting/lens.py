"""Fitting a linear lens: one forward pass that adds up sums per exit, then one ridge regression per exit."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.errors import InputError
from offramp.models.model import Model
from offramp.tracing.exit_heads import LinearLens
from offramp.tracing.fitting.capture import captured_states, require_both_sides
from offramp.tracing.fitting.ridge import choose_penalty, fit_ridge
from offramp.tracing.fitting.sums import NormalEquations, sums_bytes
from offramp.workloads.packing import Context

MEMORY_SHARE = 0.8
"""Share of the free memory that the sums may take."""


class LensSums:
    """Sums per exit below L, apart for documents to fit on and held-out ones."""

    def __init__(self, hidden: int, exits: int) -> None:
        self.fit = [NormalEquations.empty(hidden) for _ in range(exits)]
        self.held_out = [NormalEquations.empty(hidden) for _ in range(exits)]

    def add(self, states: Sequence[Tensor], held_out: Tensor) -> None:
        """Add rows. states: [rows, hidden] per exit, L's last. held_out: bool [rows]."""
        for sums, rows in ((self.fit, ~held_out), (self.held_out, held_out)):
            if not bool(rows.any()):
                continue
            last = states[-1][rows].double()
            for equations, layer in zip(sums, states[:-1], strict=True):
                equations.add(layer[rows], last)

    def solve(self) -> LinearLens:
        """The lens of every exit: penalty from the held-out sums, weights from all."""
        fitted = []
        for fit, held_out in zip(self.fit, self.held_out, strict=True):
            choice = choose_penalty(fit, held_out)
            fitted.append((fit_ridge(fit + held_out, choice.penalty), choice))
        return LinearLens(
            weight=np.stack([affine.weight.astype(np.float32) for affine, _ in fitted]),
            bias=np.stack([affine.bias.astype(np.float32) for affine, _ in fitted]),
            explained=np.array([choice.explained for _, choice in fitted]),
            penalty=np.array([choice.penalty for _, choice in fitted]),
        )


def require_memory(model: Model, exits: Sequence[int]) -> None:
    """Refuse a lens whose sums do not fit into memory.

    Raises InputError with both sizes.
    """
    needed = sums_bytes(model.shape.hidden_size, len(exits))
    free = psutil.virtual_memory().available
    if needed > MEMORY_SHARE * free:
        raise InputError(
            f"the sums of a linear lens at {len(exits)} exits take {needed / 1e9:,.1f} GB; "
            f"{free / 1e9:,.1f} GB are free",
            where=model.name,
            fix="give fewer --exits, or leave the lens out with --no-lens",
        )


def fit_lens(
    model: Model,
    contexts: Sequence[Context],
    held_out: NDArray[np.bool_],
    exits: Sequence[int],
    advance: Callable[[int], None],
) -> LinearLens:
    """The lens of some exits below L. held_out: bool [documents]."""
    sums = LensSums(model.shape.hidden_size, len(exits))
    of_document = torch.from_numpy(held_out)
    for rows, states in captured_states(model, contexts, (*exits, model.layers)):
        sums.add(states, of_document[rows.document])
        advance(len(rows))
    require_both_sides(model, sums.fit[0].count, sums.held_out[0].count)
    return sums.solve()
