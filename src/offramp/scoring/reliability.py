"""Reliability diagrams and the expected calibration error (ECE) of raw confidences."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from offramp.scoring.card import ReliabilityDiagram

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
