"""Tokens ranked by confidence at one exit: does a higher confidence mean agreement? (AUROC, AURC)"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
