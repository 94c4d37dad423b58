"""Kendall's tau-b and Spearman's rho of points, for many resamples or permutations of them at once.

A point may lack a coordinate (NaN); a pair of points counts where both have both coordinates.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]


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


def permuted_pairs(permutations: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where each pair of points i < j comes from: int64 [draws, pairs], places in a matrix [points, points].

    permutations: int64 [draws, points].
    """
    count = permutations.shape[1]
    above, below = np.triu_indices(count, k=1)
    return np.asarray(permutations[:, above] * count + permutations[:, below])


def kendall_permuted(firsts: Values, second: Values, pairs: NDArray[np.int64]) -> Values:
    """Tau-b of each first with each permutation of the second: float64 [draws, others], as of `kendall`.

    pairs: of the second's points, as `permuted_pairs` gives them.
    """
    above, below = np.triu_indices(len(second), k=1)
    known, signs = (part.astype(np.float32) for part in _pairs_of(firsts, above, below))
    both, other = (part.astype(np.float32).ravel() for part in _signs(second))
    moved = other[pairs]
    untied_first = np.abs(signs).sum(axis=0) if both.all() else both[pairs] @ np.abs(signs)
    return _ratio(moved @ signs, np.sqrt(untied_first * (np.abs(moved) @ known)))


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


MODELS_NEEDED = 3
"""Below that, the others are no line."""


@dataclass(frozen=True)
class LeftOutErrors:
    """Medians over models and pairs of workloads of the absolute error, in shares of time; None for too few.

    error: of the line through the others (`left_out_lines`). null_error: of their
    median saving, which ignores the score.
    """

    error: float | None
    null_error: float | None


def left_out_errors(pairs: Iterable[tuple[Values, Values]]) -> LeftOutErrors:
    """The errors of one score. pairs: scores (higher = more suitable) and savings, [models], NaN for none."""
    errors: list[float] = []
    null_errors: list[float] = []
    for scores, savings in pairs:
        known = np.isfinite(scores) & np.isfinite(savings)
        own, saved = scores[known], savings[known]
        if len(own) < MODELS_NEEDED:
            continue
        slopes, intercepts = left_out_lines(own, saved)
        errors += list(np.abs(intercepts + slopes * own - saved))
        null_errors += list(np.abs(_left_out_medians(np.tile(saved, (len(saved), 1))) - saved))
    if not errors:
        return LeftOutErrors(None, None)
    return LeftOutErrors(float(np.median(errors)), float(np.median(null_errors)))


def left_out_lines(scores: Values, savings: Values) -> tuple[Values, Values]:
    """Slope and intercept of the line through all models but one, for each: float64 [models] x 2.

    The same lines as `offramp.tuning.from_scores.fit_line` fits to the others, all at once: Theil-Sen, with a
    slope of 0 for one below it. scores, savings: float64 [models].
    """
    first, second = np.triu_indices(len(scores), k=1)
    run = scores[second] - scores[first]
    apart = np.flatnonzero(run != 0.0)
    slopes = (savings[second] - savings[first])[apart] / run[apart]
    order = np.argsort(slopes)
    first, second, slopes = first[apart][order], second[apart][order], slopes[order]
    place = np.arange(len(scores))[:, None]
    kept = (first != place) & (second != place)  # [models, pairs], in the order of their slopes
    found = np.maximum(_medians_of_kept(slopes, kept), 0.0)
    return found, _left_out_medians(savings - found[:, None] * scores)


def _medians_of_kept(ordered: Values, kept: NDArray[np.bool_]) -> Values:
    """Medians of some of the rising values, row by row: [values], [rows, values] -> [rows]; 0 of none."""
    if not len(ordered):
        return np.zeros(len(kept))
    counts = kept.sum(axis=1)
    ranks = kept.cumsum(axis=1)
    lower, upper = (
        ordered[np.argmax(ranks == rank[:, None], axis=1)] for rank in ((counts + 1) // 2, counts // 2 + 1)
    )
    return np.where(counts > 0, (lower + upper) / 2.0, 0.0)


def _left_out_medians(values: Values) -> Values:
    """Medians of each row without the value on the diagonal: [models, models] -> [models]."""
    count = len(values)
    others = values[~np.eye(count, dtype=bool)].reshape(count, count - 1)
    return np.asarray(np.median(others, axis=1))
