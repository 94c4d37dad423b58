"""The five factors, their two levels each, and the half of their combinations that is trained."""

from __future__ import annotations

import itertools
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from offramp.models.lab_switches import Heads, Mlp, Norm, Positions, Residual

LEVELS: dict[str, tuple[str, str]] = {
    name: get_args(kind)
    for name, kind in (
        ("norm", Norm),
        ("mlp", Mlp),
        ("positions", Positions),
        ("heads", Heads),
        ("residual", Residual),
    )
}
"""By factor, the level that counts -1 and the one that counts +1."""

FACTORS = tuple(LEVELS)

Signs = NDArray[np.int64]
"""Of runs or cells: -1 and +1, int64 [runs, factors]."""


def half_fraction() -> tuple[dict[str, str], ...]:
    """16 of the 32 combinations, the fifth factor minus the product of the four others: resolution V.

    Main effects are confounded with interactions of four factors only, and pairs with those of three (Box,
    Hunter and Hunter 2005, chapter 6). Run n of docs/lab/preregistered.md is at place n - 1.
    """
    found = []
    for signs in itertools.product((-1, 1), repeat=4):
        whole = (*reversed(signs), -int(np.prod(signs)))
        found.append({name: LEVELS[name][(sign + 1) // 2] for name, sign in zip(FACTORS, whole, strict=True)})
    return tuple(found)


def pairs(signs: Signs) -> tuple[tuple[str, ...], Signs]:
    """The columns of all interactions of two factors, with their names: int64 [runs, pairs]."""
    places = list(itertools.combinations(range(signs.shape[1]), 2))
    names = tuple(f"{FACTORS[one]} x {FACTORS[other]}" for one, other in places)
    return names, np.stack([signs[:, one] * signs[:, other] for one, other in places], axis=1)
