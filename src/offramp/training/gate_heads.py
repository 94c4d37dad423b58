"""What gates take of exit heads, and what they leave in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.heads.exit_heads import ExitHeads
from offramp.heads.parts import Classifier, ExitReading, Weights

SHUT = -20.0
"""The logit of a gate that lets no token leave."""


def reading_at(heads: ExitHeads, exits: Sequence[int]) -> ExitReading[Weights]:
    """What some exits are read through."""
    places = [heads.exits.index(exit) for exit in exits]
    lens, mlp = heads.lens, heads.mlp
    return ExitReading(
        None if lens is None else lens.chosen(places), None if mlp is None else mlp.chosen(places)
    )


def spread(gates: Classifier[Weights], exits: Sequence[int], every: Sequence[int]) -> Classifier[Weights]:
    """Gates of some exits as those of every exit of some heads: at the others no token leaves."""
    if tuple(exits) == tuple(every):
        return gates
    places = [list(every).index(exit) for exit in exits]

    def of(array: NDArray[Any], elsewhere: float) -> NDArray[Any]:
        whole = np.full((len(every), *array.shape[1:]), elsewhere, dtype=array.dtype)
        whole[places] = array
        return whole

    return Classifier(
        mean=of(gates.mean, 0.0),
        scale=of(gates.scale, 1.0),
        weights=tuple(of(one, 0.0) for one in gates.weights),
        biases=(of(gates.biases[0], 0.0), of(gates.biases[1], SHUT)),
        auroc=of(gates.auroc, math.nan),
        base_rate=of(gates.base_rate, 0.0),
        better_than_chance=of(gates.better_than_chance, False),
    )
