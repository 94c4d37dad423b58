"""One effect on one endpoint, how it is tested together with others, and the word for it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.stats import t as student

from offramp.lab.effects.runs import (
    CALIBRATION,
    REPRESENTATION,
    REPRESENTATION_LENS,
    SKIPPED,
    SKIPPED_LENS,
    Values,
)
from offramp.scoring.rank_correlation import LEVEL

PERMUTATIONS = 9_999
SMALLEST: Mapping[str, float] = {
    SKIPPED: 0.05,
    SKIPPED_LENS: 0.05,
    REPRESENTATION: 0.03,
    REPRESENTATION_LENS: 0.03,
    CALIBRATION: 0.03,
}
"""The smallest effect that matters, by endpoint."""

Word = Literal["lower", "higher", "no difference", "cannot be told", "indication"]


@dataclass(frozen=True)
class Effect:
    """One comparison on one endpoint. low, high: 95 % by the error of a seed; None where seeds do not differ.

    adjusted: p-value, over all that is tested together. detectable: with 80 % power. with_loss, p_with_loss:
    at the last step, with the last loss as covariate; None where that is not asked for.
    """

    family: str
    name: str
    endpoint: str
    value: float
    low: float | None
    high: float | None
    adjusted: float
    detectable: float | None
    word: Word
    with_loss: float | None = None
    p_with_loss: float | None = None


def make_effect(
    family: str,
    name: str,
    endpoint: str,
    value: float,
    *,
    error: float,
    freedom: int,
    adjusted: float,
    limit: float,
    smallest: float | None,
    with_loss: tuple[float, float] | None = None,
) -> Effect:
    """An effect with its interval and its word.

    error: standard error by the error of a seed, with so many degrees of freedom; 0 or NaN for none. limit:
    of the largest |t| by chance the 95 % point. with_loss: effect and unadjusted p-value of that fit.
    """
    sized = replace(
        Effect(family, name, endpoint, value, None, None, adjusted, None, "cannot be told"),
        with_loss=None if with_loss is None else with_loss[0],
        p_with_loss=None if with_loss is None else with_loss[1],
    )
    if not error > 0 or freedom < 1:
        return sized
    quantile = {share: float(student.ppf(share, freedom)) for share in (0.8, 0.95, 0.975)}
    low, high = value - quantile[0.975] * error, value + quantile[0.975] * error
    word: Word = "cannot be told"
    if adjusted <= LEVEL and low * high > 0 and _agrees(value, with_loss):
        word = "higher" if value > 0 else "lower"
    elif smallest is not None and abs(value) + quantile[0.95] * error < smallest:
        word = "no difference"
    return replace(sized, low=low, high=high, detectable=(limit + quantile[0.8]) * error, word=word)


def _agrees(value: float, with_loss: tuple[float, float] | None) -> bool:
    return with_loss is None or (with_loss[0] * value > 0 and with_loss[1] <= LEVEL)


def step_down(t: Values, chance: Values) -> Values:
    """Adjusted p-values of all |t| together, of the shape of t (Westfall and Young 1993).

    chance: t without effects, [permutations, *shape of t], what was found not among them. The largest is held
    against the largest by chance, the next against the largest of those that are left; none gets a smaller
    value than one before.
    """
    flat, by_chance = np.abs(t).ravel(), np.abs(chance).reshape(len(chance), -1)
    order = np.argsort(-flat, kind="stable")
    left = np.maximum.accumulate(by_chance[:, order[::-1]], axis=1)[:, ::-1]
    reached = left >= flat[order] * (1 - 1e-9)  # equal ones may differ by rounding
    p = (1 + reached.sum(0)) / (1 + len(chance))
    adjusted = np.empty(len(flat))
    adjusted[order] = np.maximum.accumulate(p)
    return adjusted.reshape(t.shape)


def beyond_rounding(squares: Values, values: Values) -> Values:
    """Sums of squared deviations, 0 where they are rounding errors. values: [units, ...], that deviate."""
    return np.where(squares > 1e-12 * (values**2).sum(0), squares, 0.0)


def largest_limit(chance: Values) -> float:
    """The 95 % point of the largest |t| by chance. chance: [permutations, ...]."""
    return float(np.quantile(np.abs(chance).reshape(len(chance), -1).max(1), 1 - LEVEL))
