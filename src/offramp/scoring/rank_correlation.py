"""Kendall's tau-b and Spearman's rho of points, for many resamples of them at once.

A point may lack a coordinate (NaN); a pair of points counts where both have both coordinates.
"""

from __future__ import annotations

from collections.abc import Sequence
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


def spearman(firsts: Values, second: Values, weights: Values) -> Values:
    """Spearman's rho: Pearson's correlation of ranks, ties averaged. Shapes and NaN as in `kendall`."""
    return np.stack([_spearman(first, second, weights) for first in firsts], axis=1)


def _spearman(first: Values, second: Values, weights: Values) -> Values:
    known = np.isfinite(first) & np.isfinite(second)
    drawn = weights[:, known]
    one, other = _centred_ranks(first[known], drawn), _centred_ranks(second[known], drawn)
    spread = (drawn * one * one).sum(axis=1) * (drawn * other * other).sum(axis=1)
    rounded = np.where(spread < 1e-9, 0.0, spread)  # equal ranks less their mean leave rounding errors
    return _ratio((drawn * one * other).sum(axis=1), np.sqrt(rounded))


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


def _centred_ranks(values: Values, weights: Values) -> Values:
    """Rank of each point among the drawn ones, ties averaged, less their mean: [draws, points]."""
    below = (values[:, None] > values[None, :]) + 0.5 * (values[:, None] == values[None, :])
    ranks = weights @ below.T
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1.0)  # a draw may hold none of these points
    return np.asarray(ranks - (weights * ranks).sum(axis=1, keepdims=True) / total)


def _ratio(above: NDArray[Any], below: NDArray[Any]) -> Values:
    found: Values = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0.0)
    return found


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
