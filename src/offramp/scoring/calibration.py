"""What each exit's confidence is worth: recalibration, Brier scores, ECE, AUROC, AURC, reliability."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.scoring.card import ReliabilityDiagram
from offramp.scoring.documents import DocumentRows, fact_of
from offramp.tracing.trace import Trace

TOKENS_PER_CLASS = 20


@dataclass(frozen=True)
class ConfidenceRanking:
    """The tokens of one exit by rising confidence.

    rows: int64 [tokens], rows of the trace in that order. confidence, agrees: float64 [tokens], likewise.
    ties: int64 [groups], the first place of each group of equal confidence.
    """

    rows: NDArray[np.int64]
    confidence: NDArray[np.float64]
    agrees: NDArray[np.float64]
    ties: NDArray[np.int64]

    @property
    def constant(self) -> bool:
        """Whether all tokens have the same confidence, so that it ranks nothing."""
        return len(self.ties) == 1


def rank_by_confidence(confidence: NDArray[np.float32], agrees: NDArray[np.bool_]) -> ConfidenceRanking:
    """Rank the tokens of one exit: confidence float32 [tokens], agrees bool [tokens]. Exact, one sort."""
    rows = np.argsort(confidence)
    ranked = confidence[rows].astype(np.float64)
    return ConfidenceRanking(rows, ranked, agrees[rows].astype(np.float64), tie_starts(ranked))


def tie_starts(ranked: NDArray[np.float64]) -> NDArray[np.int64]:
    """The first place of each group of equal values in a sorted array: int64 [groups]."""
    new_group = np.concatenate([[True], ranked[1:] != ranked[:-1]])
    return np.flatnonzero(new_group)


def auroc(ranking: ConfidenceRanking) -> float:
    """Probability that a token that agrees has a higher confidence than one that does not, ties counted half.

    NaN (undefined) when fewer than 20 tokens agree, fewer than 20 do not, or the confidence is constant.
    """
    agreeing = float(ranking.agrees.sum())
    other = len(ranking.agrees) - agreeing
    if min(agreeing, other) < TOKENS_PER_CLASS or ranking.constant:
        return float("nan")
    in_group = np.add.reduceat(ranking.agrees, ranking.ties)
    size = np.diff(ranking.ties, append=len(ranking.agrees))
    other_in_group = size - in_group
    other_below = np.cumsum(other_in_group) - other_in_group
    return float(in_group @ (other_below + 0.5 * other_in_group) / (agreeing * other))


def aurc(ranking: ConfidenceRanking) -> float:
    """Area under the risk-coverage curve: mean over k of the disagreement among the k most confident tokens.

    In [0, 1], lower = better. Among ties the order is random, so the expected value is taken (each tied token
    counts as the mean of its group). NaN if the confidence is constant.
    Geifman and El-Yaniv, arXiv 1705.08500; the area: Geifman et al., arXiv 1805.08206.
    """
    if ranking.constant:
        return float("nan")
    size = np.diff(ranking.ties, append=len(ranking.agrees))
    risk_of_group = 1.0 - np.add.reduceat(ranking.agrees, ranking.ties) / size
    risk = np.repeat(risk_of_group, size)[::-1]
    return float(np.mean(np.cumsum(risk) / np.arange(1, len(risk) + 1)))


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


BINS = 15


def reliability_diagram(
    exit: int, confidence: NDArray[np.float32], correct: NDArray[np.bool_]
) -> ReliabilityDiagram:
    """Mean confidence and share of correct tokens in 15 bins of equal width over [0, 1], for one exit.

    confidence: float32 [tokens]; correct: bool [tokens] (as the full model, or as the observed text).
    A bin holds its lower edge, the last one also 1. Guo et al., arXiv 1706.04599, section 2.
    """
    place = np.minimum((confidence * np.float32(BINS)).astype(np.int64), BINS - 1)
    count = np.bincount(place, minlength=BINS)
    occupied = np.where(count > 0, count, np.nan)
    return ReliabilityDiagram(
        exit=exit,
        edges=np.linspace(0.0, 1.0, BINS + 1),
        count=count.astype(np.int64),
        confidence=np.bincount(place, weights=confidence, minlength=BINS) / occupied,
        agreement=np.bincount(place, weights=correct, minlength=BINS) / occupied,
    )


def expected_calibration_error(diagram: ReliabilityDiagram) -> float:
    """ECE in [0, 1]: the mean gap between confidence and correctness over the bins, weighted by their tokens.

    Guo et al., arXiv 1706.04599, equation 3. It is biased upwards with few tokens, so it gets no interval.
    """
    occupied = diagram.count > 0
    gap = np.abs(diagram.confidence[occupied] - diagram.agreement[occupied])
    return float(gap @ diagram.count[occupied] / diagram.count.sum())


# Rounding of a float32 softmax may leave a probability slightly above 1.
PROBABILITY_TOLERANCE = 1e-3


@dataclass(frozen=True)
class ConfidenceDiagnostics:
    """Diagnostics of `max_prob`, for every exit.

    brier_sums: float64 [documents, exits], per-document sums of (max_prob - agreement)^2.
    recalibrated_sums: the same after the cross-fitted isotonic map; None with a single document.
    ece_agreement, ece_token: ECE against agreement and against the observed token, float64 [exits].
    auroc, aurc: float64 [exits], NaN where undefined. reliability: one diagram per exit, against agreement.
    constant: bool [exits], whether all tokens have the same confidence.
    few: bool [exits], whether fewer than 20 tokens agree or fewer than 20 do not.
    """

    brier_sums: Values
    recalibrated_sums: Values | None
    ece_agreement: Values
    ece_token: Values
    auroc: Values
    aurc: Values
    reliability: tuple[ReliabilityDiagram, ...]
    constant: NDArray[np.bool_]
    few: NDArray[np.bool_]

    @classmethod
    def beside(cls, exits: Sequence[ConfidenceDiagnostics]) -> ConfidenceDiagnostics:
        """Those of several exits as one, in their order."""
        columns: dict[str, Any] = {
            name: None if value is None else np.concatenate([getattr(exit, name) for exit in exits], axis=-1)
            for name, value in vars(exits[0]).items()
            if name != "reliability"
        }
        return cls(reliability=tuple(diagram for exit in exits for diagram in exit.reliability), **columns)


def confidence_diagnostics(
    trace: Trace, rows: DocumentRows, agreement: NDArray[np.bool_]
) -> ConfidenceDiagnostics:
    """Every diagnostic of `max_prob` against agreement (bool [tokens, exits]) and the observed next token.

    Raises InputError if `max_prob` lies outside [0, 1].
    """
    # One exit's column must be contiguous: it is sorted, binned and summed as a whole.
    confidence = np.ascontiguousarray(fact_of(trace, "max_prob").T, dtype=np.float32)
    if confidence.min() < 0.0 or confidence.max() > 1.0 + PROBABILITY_TOLERANCE:
        raise InputError("fact 'max_prob' lies outside [0, 1]", fix="trace the model again")
    agrees = np.ascontiguousarray(agreement.T)
    correct = np.ascontiguousarray((fact_of(trace, "top1") == trace.next_token[:, np.newaxis]).T)
    fold = rows.fold_of_row() if rows.count >= FOLDS_NEED_DOCUMENTS else None
    return ConfidenceDiagnostics.beside(
        [
            _of_one_exit(
                int(trace.exits[column]), confidence[column], agrees[column], correct[column], rows, fold
            )
            for column in range(len(trace.exits))
        ]
    )


def _of_one_exit(
    exit: int,
    confidence: NDArray[np.float32],
    agrees: NDArray[np.bool_],
    correct: NDArray[np.bool_],
    rows: DocumentRows,
    fold: NDArray[np.bool_] | None,
) -> ConfidenceDiagnostics:
    ranking, diagram = rank_by_confidence(confidence, agrees), reliability_diagram(exit, confidence, agrees)
    agreeing = int(np.count_nonzero(agrees))
    recalibrated = None if fold is None else _recalibrated_sums(ranking, rows, fold)
    return ConfidenceDiagnostics(
        brier_sums=rows.sums((confidence.astype(np.float64) - agrees) ** 2)[:, None],
        recalibrated_sums=None if recalibrated is None else recalibrated[:, None],
        ece_agreement=np.array([expected_calibration_error(diagram)]),
        ece_token=np.array([expected_calibration_error(reliability_diagram(exit, confidence, correct))]),
        auroc=np.array([auroc(ranking)]),
        aurc=np.array([aurc(ranking)]),
        reliability=(diagram,),
        constant=np.array([ranking.constant]),
        few=np.array([min(agreeing, len(agrees) - agreeing) < TOKENS_PER_CLASS]),
    )


def _recalibrated_sums(ranking: ConfidenceRanking, rows: DocumentRows, fold: NDArray[np.bool_]) -> Values:
    errors = squared_errors(cross_fitted_rates(ranking, fold), ranking)
    return rows.sums(errors)
