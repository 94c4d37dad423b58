"""Many differences at once: p-values adjusted so that the chance of any false claim stays at the level."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LEVEL = 0.05
"""Chance of any false claim in a table."""


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (Holm 1979), in the order given; None stays None and does not count.

    The i-th smallest of m p-values becomes the largest of p_(j) (m - j + 1) over j <= i, at most 1. Claiming
    what is at most 0.05 afterwards keeps the family-wise error at 5 %, however the p-values depend on each
    other.
    """
    places = [place for place, value in enumerate(p_values) if value is not None]
    values = np.array([p_values[place] for place in places], dtype=np.float64)
    order = np.argsort(values, kind="stable")
    stepped = values[order] * np.arange(len(values), 0, -1)
    adjusted = np.minimum(np.maximum.accumulate(stepped), 1.0)
    found: list[float | None] = [None] * len(p_values)
    for rank, place in enumerate(order):
        found[places[place]] = float(adjusted[rank])
    return found
