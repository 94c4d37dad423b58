"""One effect on one endpoint, how it is tested together with others, and the word for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    adjusted: p-value, over all that is tested together. detectable: 95 % point of the largest
    |t| by chance and t at 80 %, times the standard error. with_loss, p_with_loss:
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


def make_effects(
    family: str,
    tests: Sequence[tuple[str, str]],
    values: Values,
    errors: Values,
    *,
    freedom: int,
    adjusted: Values,
    limit: float,
    smallest: Mapping[str, float],
    with_loss: tuple[Values, Values] | None = None,
) -> tuple[Effect, ...]:
    """Effects with their intervals and words.

    tests: of each what is compared and the endpoint, endpoints outermost. values, adjusted, errors: float64
    [tests] or [compared, endpoints]; errors by the error of a seed, 0 or NaN for none. limit: of the largest
    |t| by chance the 95 % point. smallest: by endpoint. with_loss: effects and unadjusted p-values.
    """
    columns = (values, errors, adjusted, *(with_loss or (np.full_like(values, np.nan),) * 2))
    rows = np.stack([column.T.ravel() for column in columns], axis=1).tolist()
    quantile = {share: float(student.ppf(share, freedom)) for share in (0.8, 0.95, 0.975)}
    found = []
    for (name, endpoint), (value, error, p, after, p_after) in zip(tests, rows, strict=True):
        effect = Effect(family, name, endpoint, value, None, None, p, None, "cannot be told")
        if with_loss is not None:
            effect = replace(effect, with_loss=after, p_with_loss=p_after)
        if error > 0:
            low, high = value - quantile[0.975] * error, value + quantile[0.975] * error
            agrees = with_loss is None or (after * value > 0 and p_after <= LEVEL)
            word: Word = "cannot be told"
            if p <= LEVEL and low * high > 0 and agrees:
                word = "higher" if value > 0 else "lower"
            elif abs(value) + quantile[0.95] * error < smallest.get(endpoint, 0.0):
                word = "no difference"
            detectable = (limit + quantile[0.8]) * error
            effect = replace(effect, low=low, high=high, detectable=detectable, word=word)
        found.append(effect)
    return tuple(found)


def two_sided(values: Values, errors: Values, freedom: int) -> Values:
    """Unadjusted p-values of t, 1 where there is no error. values, errors: alike in shape."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(errors > 0, 2 * student.sf(np.abs(values) / errors, freedom), 1.0))


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
