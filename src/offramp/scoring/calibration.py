"""How well an exit's confidence predicts its own agreement, once it is recalibrated."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offramp.scoring.ranking import ConfidenceRanking, tie_starts

FOLDS_NEED_DOCUMENTS = 2

Values = NDArray[np.float64]


def isotonic_map(ranked: Values, agrees: Values) -> tuple[Values, Values]:
    """The isotonic (rising) map of confidence to agreement rate, fitted by least squares.

    ranked: float64 [tokens], rising confidence; agrees: float64 [tokens], 0 or 1.
    Returns the distinct confidences and the fitted rates, each float64 [groups]; tied tokens count as their
    mean, with their number as weight, so that the order among ties is of no effect.
    """
    from scipy.optimize import isotonic_regression  # here, since planning a study imports this file

    ties = tie_starts(ranked)
    size = np.diff(ties, append=len(ranked)).astype(np.float64)
    rate = np.add.reduceat(agrees, ties) / size
    return ranked[ties], np.asarray(isotonic_regression(rate, weights=size).x)


def cross_fitted_rates(ranking: ConfidenceRanking, fold_of_row: NDArray[np.bool_]) -> Values:
    """Recalibrated confidence of each token, from the map fitted on the other fold: float64 [tokens].

    fold_of_row: bool [tokens], in row order; both folds must hold tokens. The result is in the ranking's
    order. Between fitted confidences the map is linear, outside them it is held. Isotonic recalibration:
    Zadrozny and Elkan 2002.
    """
    fold = fold_of_row[ranking.rows]
    # Places instead of masks: taking by place is several times faster.
    halves = np.flatnonzero(fold), np.flatnonzero(~fold)
    rates = np.empty(len(fold))
    for fitted, held_out in (halves, halves[::-1]):
        confidence, rate = isotonic_map(ranking.confidence[fitted], ranking.agrees[fitted])
        rates[held_out] = np.interp(ranking.confidence[held_out], confidence, rate)
    return rates


def squared_errors(rates: Values, ranking: ConfidenceRanking) -> Values:
    """(rate - agreement)^2 of each token, in row order: float64 [tokens]. Their mean is the Brier score."""
    errors = np.empty(len(rates))
    errors[ranking.rows] = (rates - ranking.agrees) ** 2
    return errors
