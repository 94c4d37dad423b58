"""A linear lens from the sums of its exits: one ridge regression per exit."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from offramp.tracing.exit_heads import LinearLens
from offramp.tracing.fitting.ridge import choose_penalty, fit_ridge
from offramp.tracing.fitting.sums import ExitSums


def lens_sums(hidden: int, layers: int, exits: Iterable[int]) -> ExitSums:
    """Sums of a lens at some exits below L = `layers`: each predicts the last layer's output alone."""
    return ExitSums(hidden, dict.fromkeys(exits, (layers,)))


def solve_lens(sums: ExitSums) -> LinearLens:
    """The lens of every exit: penalty from the held-out sums, weights from all; `sums.fit` then holds all."""
    fitted = []
    for exit, fit in sums.fit.items():
        choice = choose_penalty(fit, sums.held_out[exit])
        fit += sums.held_out[exit]
        fitted.append((fit_ridge(fit, choice.penalty)[0], choice))
    return LinearLens(
        weight=np.stack([affine.weight.astype(np.float32) for affine, _ in fitted]),
        bias=np.stack([affine.bias.astype(np.float32) for affine, _ in fitted]),
        explained=np.array([choice.explained[0] for _, choice in fitted]),
        penalty=np.array([choice.penalty for _, choice in fitted]),
    )
