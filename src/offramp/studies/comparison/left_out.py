"""Leave-one-model-out: how far a line through the other models misses a model's saving."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MODELS_NEEDED = 3
"""Below that, the others are no line."""

Values = NDArray[np.float64]


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
