"""What each exit's confidence is worth: Brier scores, ECE, AUROC, AURC and reliability, exit by exit."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.scoring.calibration import FOLDS_NEED_DOCUMENTS, cross_fitted_rates, squared_errors
from offramp.scoring.card import ReliabilityDiagram
from offramp.scoring.documents import DocumentRows, fact_of
from offramp.scoring.ranking import TOKENS_PER_CLASS, ConfidenceRanking, aurc, auroc, rank_by_confidence
from offramp.scoring.reliability import expected_calibration_error, reliability_diagram
from offramp.tracing.trace import Trace

# Rounding of a float32 softmax may leave a probability slightly above 1.
PROBABILITY_TOLERANCE = 1e-3

Values = NDArray[np.float64]


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


@dataclass(frozen=True)
class _ExitDiagnostics:
    """The same figures of one exit."""

    brier_sums: Values
    recalibrated_sums: Values | None
    ece_token: float
    auroc: float
    aurc: float
    reliability: ReliabilityDiagram
    constant: bool
    few: bool


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
    exits = [
        _one_exit(int(trace.exits[column]), confidence[column], agrees[column], correct[column], rows, fold)
        for column in range(len(trace.exits))
    ]
    recalibrated = [exit.recalibrated_sums for exit in exits if exit.recalibrated_sums is not None]
    return ConfidenceDiagnostics(
        brier_sums=np.stack([exit.brier_sums for exit in exits], axis=1),
        recalibrated_sums=np.stack(recalibrated, axis=1) if recalibrated else None,
        ece_agreement=np.array([expected_calibration_error(exit.reliability) for exit in exits]),
        ece_token=np.array([exit.ece_token for exit in exits]),
        auroc=np.array([exit.auroc for exit in exits]),
        aurc=np.array([exit.aurc for exit in exits]),
        reliability=tuple(exit.reliability for exit in exits),
        constant=np.array([exit.constant for exit in exits]),
        few=np.array([exit.few for exit in exits]),
    )


def _one_exit(
    exit: int,
    confidence: NDArray[np.float32],
    agrees: NDArray[np.bool_],
    correct: NDArray[np.bool_],
    rows: DocumentRows,
    fold: NDArray[np.bool_] | None,
) -> _ExitDiagnostics:
    ranking = rank_by_confidence(confidence, agrees)
    agreeing = int(np.count_nonzero(agrees))
    return _ExitDiagnostics(
        brier_sums=rows.sums((confidence.astype(np.float64) - agrees) ** 2),
        recalibrated_sums=None if fold is None else _recalibrated_sums(ranking, rows, fold),
        ece_token=expected_calibration_error(reliability_diagram(exit, confidence, correct)),
        auroc=auroc(ranking),
        aurc=aurc(ranking),
        reliability=reliability_diagram(exit, confidence, agrees),
        constant=ranking.constant,
        few=min(agreeing, len(agrees) - agreeing) < TOKENS_PER_CLASS,
    )


def _recalibrated_sums(ranking: ConfidenceRanking, rows: DocumentRows, fold: NDArray[np.bool_]) -> Values:
    errors = squared_errors(cross_fitted_rates(ranking, fold), ranking)
    return rows.sums(errors)
