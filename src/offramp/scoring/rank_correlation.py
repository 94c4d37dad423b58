"""Kendall's tau-b of points, for many resamples of them at once.

A point may lack a coordinate (NaN); a pair of points counts where both have both coordinates.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

BASES_NEEDED = 12
"""Independently trained models below which nothing is said of models in general."""


def kendall(firsts: Values, second: Values, weights: Values) -> Values:
    """Kendall's tau-b (Kendall 1945) of each first with the second: float64 [draws, others].

    firsts: float64 [others, points]; second: float64 [points]; weights: float64 [draws, points], how often
    each point is drawn. A point drawn twice is tied with itself in both coordinates, and so counts in no pair
    with itself. NaN where all drawn points are tied in one coordinate.
    """
    above, below = np.triu_indices(len(second), k=1)
    drawn = weights[:, above] * weights[:, below]
    known, signs = _pairs_of(firsts, above, below)
    known_too, other = _pairs_of(second[None], above, below)
    untied = (drawn @ (np.abs(signs) * known_too)) * (drawn @ (np.abs(other) * known))
    return _ratio(drawn @ (signs * other), np.sqrt(untied))


def _pairs_of(values: Values, above: NDArray[np.int64], below: NDArray[np.int64]) -> tuple[Values, Values]:
    """Of each pair: whether both points have a value, the sign of their difference: [pairs, others] x 2."""
    parts = [_signs(one) for one in values]
    known, signs = (np.stack([part[which][above, below] for part in parts], axis=1) for which in (0, 1))
    return known, signs


def _signs(values: Values) -> tuple[Values, Values]:
    """Whether two points have a value, as 0 or 1, and the sign of their difference: [points, points] x 2."""
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    both = (known[:, None] & known[None, :]).astype(np.float64)
    return both, np.sign(filled[:, None] - filled[None, :]) * both


def _ratio(above: NDArray[Any], below: NDArray[Any]) -> Values:
    found: Values = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0.0)
    return found
