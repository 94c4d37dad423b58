"""What gates take of exit heads, and what they leave in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.heads.exit_heads import ExitClassifier, ExitHeads
from offramp.heads.readings import ExitMlp, LinearLens

SHUT = -20.0
"""The logit of a gate that lets no token leave."""


def reading_at(heads: ExitHeads, exits: Sequence[int]) -> tuple[LinearLens | None, ExitMlp | None]:
    """What some exits are read through."""
    places = [heads.exits.index(exit) for exit in exits]
    lens = None if heads.lens is None else heads.lens.at(places)
    return lens, None if heads.mlp is None else heads.mlp.at(places)


def spread(gates: ExitClassifier, exits: Sequence[int], every: Sequence[int]) -> ExitClassifier:
    """Gates of some exits as those of every exit of some heads: at the others no token leaves."""
    if tuple(exits) == tuple(every):
        return gates
    places = [list(every).index(exit) for exit in exits]

    def of(array: NDArray[Any], elsewhere: float) -> NDArray[Any]:
        whole = np.full((len(every), *array.shape[1:]), elsewhere, dtype=array.dtype)
        whole[places] = array
        return whole

    return ExitClassifier(
        mean=of(gates.mean, 0.0),
        scale=of(gates.scale, 1.0),
        weights=tuple(of(one, 0.0) for one in gates.weights),
        biases=(of(gates.biases[0], 0.0), of(gates.biases[1], SHUT)),
        auroc=of(gates.auroc, math.nan),
        base_rate=of(gates.base_rate, 0.0),
        better_than_chance=of(gates.better_than_chance, False),
    )
