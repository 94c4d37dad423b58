"""The score card of one trace: what `offramp.score` returns and the report shows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.scoring.estimate import Estimate

Curve = NDArray[np.float64]


@dataclass(frozen=True)
class LayerCurves:
    """Per-exit curves, each float64 [exits]; NaN where a figure is undefined at that exit.

    depth_fraction: x, the share of the layers' FLOPs spent up to the exit.
    values: curve by name: agreement, kl_to_final, remaining_information, increment, entropy, nll, max_prob,
    margin, final_rank_median, logit_cosine, centred_logit_cosine, shuffled_logit_cosine, hidden_cosine_to_final,
    hidden_cosine_to_previous, update_norm, brier, recalibrated_brier, ece_agreement, ece_token, auroc, aurc.
    intervals: (low, high) for the curves that allow an interval (agreement, kl_to_final, ...).
    """

    exits: NDArray[np.int64]
    depth_fraction: Curve
    values: Mapping[str, Curve]
    intervals: Mapping[str, tuple[Curve, Curve]]


@dataclass(frozen=True)
class ReliabilityDiagram:
    """Confidence (max_prob) against agreement with the full model, in equal-width bins of one exit.

    edges: float64 [bins + 1]; count: int64 [bins]; confidence, agreement: float64 [bins], NaN in empty bins.
    """

    exit: int
    edges: Curve
    count: NDArray[np.int64]
    confidence: Curve
    agreement: Curve


@dataclass(frozen=True)
class EasVariant:
    """The study's Early-exit Adaptability Score for one similarity, between its floor and its ceiling."""

    similarity: str
    alpha: float
    score: Estimate
    ceiling: float
    floor: float


@dataclass(frozen=True)
class ScoreCard:
    """Every score of one trace, with the curves behind them.

    representation, increment, calibration, composite: in [0, 1], higher = more suitable.
    literal_calibration: the study's wording, 1 - ECE of max_prob against the observed token, mean over exits < L.
    initial_information: R_0 in nats. ceiling: 1 - x_1. head_share: share of a token's FLOPs in the head.
    first_match_skip, saturation_skip: oracle skip ratios (unreachable bounds).
    time_ceiling_*: skip x (1 - head share).
    """

    representation: Estimate
    increment: Estimate
    calibration: Estimate
    literal_calibration: Estimate
    composite: Estimate
    initial_information: Estimate
    first_match_skip: Estimate
    saturation_skip: Estimate
    ceiling: float
    head_share: float
    mean_position: float
    documents: int
    tokens: int
    curves: LayerCurves
    reliability: tuple[ReliabilityDiagram, ...]
    eas_variants: tuple[EasVariant, ...]
    compute_eas: Callable[[str, float], EasVariant]
    notes: tuple[str, ...]

    def eas(self, similarity: str = "centred_logit", alpha: float = 0.5) -> EasVariant:
        """EAS with a chosen similarity ("logit", "centred_logit", "hidden") and weight alpha in (0, 1]."""
        return self.compute_eas(similarity, alpha)

    def to_json(self) -> dict[str, Any]:
        """A JSON object with every figure and curve; NaN becomes null."""
        raise NotImplementedError
