"""LayerSkip's schedules (arXiv 2404.16710, section 4.1): layers that are left out, and how exits are weighed.

The paper numbers layers l = 0 .. L - 1; an exit ℓ here, after layer ℓ = 1 .. L, is its layer l = ℓ - 1. Steps
are t = 0 .. T - 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Curriculum = Literal["rotational", "gradual", "all"]


def _rising(place: int, count: int) -> float:
    """exp(place ln 2 / (count - 1)) - 1: from 0 at the first of so many to 1 at the last."""
    return 1.0 if count < 2 else math.exp(min(1.0, place / (count - 1)) * math.log(2.0)) - 1.0


def dropout_probabilities(layers: int, step: int, steps: int, largest: float) -> NDArray[np.float64]:
    """Chance of each layer to be left out, float64 [layers]: S(t) D(l) p_max (equations 2 to 4).

    D and S grow exponentially from 0 to 1, over the layers and over the steps. largest: p_max, of the last
    layer at the last step.
    """
    import numpy as np

    by_depth = np.array([_rising(layer, layers) for layer in range(layers)])
    return largest * _rising(step, steps) * by_depth


def exit_scale(exit: int, layers: int, scale: float) -> float:
    """e(l) of an exit, which grows with depth from 0 at exit 1 (equation 7).

    scale: e_scale, of all exits but the last.
    """
    layer = exit - 1
    if layer < layers - 1:
        return scale * layer * (layer + 1) / 2
    return layer + scale * (layer - 1) * layer / 2


def enabled_exits(
    exits: Sequence[int], layers: int, step: int, steps: int, curriculum: Curriculum
) -> tuple[int, ...]:
    """The exits below L that the loss of a step looks at (C of equation 6).

    rotational: one of them a step, in turns (R is their number). gradual: the deepest from the start, and
    each further layer T / 2L steps after the one above it. all: each of them at every step.
    """
    if curriculum == "rotational":
        return (exits[step % len(exits)],)
    if curriculum == "gradual":
        return tuple(exit for exit in exits if step >= (layers - exit) * steps / (2 * layers))
    return tuple(exits)


def fewest_steps(exits: Sequence[int], curriculum: Curriculum) -> int:
    """The fewest steps T in which each of these exits is enabled once."""
    # The shallowest waits for T / 2 steps at the most: the second of two.
    return {"rotational": len(exits), "gradual": 2, "all": 1}[curriculum]


def exit_weights(exits: Sequence[int], layers: int, scale: float) -> dict[int, float]:
    """The normalised weight of each exit's loss, that of L among them (equation 6): they sum to 1."""
    scales = {exit: exit_scale(exit, layers, scale) for exit in dict.fromkeys((*exits, layers))}
    return {exit: scale / sum(scales.values()) for exit, scale in scales.items()}
