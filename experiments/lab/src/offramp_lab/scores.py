"""Family 6: whether one score, chosen on half of the trainings, tells on the other half what is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
from scipy.stats import norm, rankdata, spearmanr

from offramp_lab.effects import LEVEL, PERMUTATIONS, orders
from offramp_lab.runs import ORACLE, Values
from offramp_lab.text import sha256_of

DRAWS = 1_999
TRAININGS_NEEDED = 12
"""In the half that confirms."""
LARGEST = 0.9999
"""Of a correlation whose Fisher's z is taken."""


@dataclass(frozen=True)
class Choice:
    """The candidate with the largest correlation in the first half, found, and in the second, confirmed.

    p: one-sided, of the second. detectable: correlation (`docs/preregistered.md`).
    """

    score: str
    found: float
    confirmed: float
    p: float
    detectable: float


@dataclass(frozen=True)
class ScoreValidity:
    """What scores tell of savings.

    table: score, value, low and high of every candidate and the oracle over all trainings, intervals of 95 %
    for all together; it claims nothing. halves: trainings in each. choice: None where nothing can be told,
    and untold says why. without_recurrent: the same without trainings whose layers run whatever their exits
    say, if there are any: what they save is a fact about caches.
    """

    table: pd.DataFrame
    halves: tuple[int, int]
    choice: Choice | None = None
    untold: str = ""
    without_recurrent: ScoreValidity | None = None

    @property
    def passed(self) -> bool:
        """Whether the chosen score tells savings in the other half."""
        return self.choice is not None and self.choice.p <= LEVEL

    @property
    def holds(self) -> bool:
        """Whether it does, also without recurrent ones."""
        return self.passed and (self.without_recurrent is None or self.without_recurrent.passed)


def score_validity(
    names: Sequence[str], scores: Mapping[str, Values], savings: Values, *, permutations: int = PERMUTATIONS
) -> ScoreValidity:
    """What scores tell of savings. names: of trainings; savings: float64 [trainings].

    scores: by name, float64 [trainings], of which more means more is saved; the oracle is no candidate.
    """
    order = sorted(range(len(names)), key=lambda place: sha256_of(f"offramp lab half {names[place]}"))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    table = correlations(scores if len(names) >= TRAININGS_NEEDED else {}, savings)
    made = ScoreValidity(table, (len(first), len(second)))
    if len(second) < TRAININGS_NEEDED:
        needed = f"{len(second)} trainings in the second half, {TRAININGS_NEEDED} are needed"
        return replace(made, untold=needed)
    candidates = {
        name: _spearman(one[first], savings[first]) for name, one in scores.items() if name != ORACLE
    }
    candidates = {name: value for name, value in candidates.items() if np.isfinite(value)}
    if not candidates:
        return replace(made, untold="in the first half all savings, or all values of every score, are equal")
    chosen = max(candidates, key=lambda name: candidates[name])
    confirmed = _spearman(scores[chosen][second], savings[second])
    if not np.isfinite(confirmed):
        return replace(made, untold=f"in the second half all savings, or all values of {chosen}, are equal")
    chance = by_chance(scores[chosen][second], savings[second], permutations)
    p = float((1 + (chance >= confirmed - 1e-9).sum()) / (1 + permutations))
    limit = np.arctanh(min(float(np.quantile(chance, 1 - LEVEL)), LARGEST))
    spread = np.sqrt(1.06 / (len(second) - 3))  # Fieller, Hartley and Pearson 1957
    detectable = float(np.tanh(limit + norm.ppf(0.8) * spread))
    return replace(made, choice=Choice(chosen, candidates[chosen], confirmed, p, detectable))


def _spearman(scores: Values, savings: Values) -> float:
    if np.ptp(scores) == 0 or np.ptp(savings) == 0:
        return float("nan")
    return float(spearmanr(scores, savings).statistic)


def by_chance(scores: Values, savings: Values, permutations: int, seed: int = 0) -> Values:
    """Correlations of scores with savings in random orders: float64 [permutations]."""
    one, other = standard_ranks(scores), standard_ranks(savings)
    return np.asarray(other[orders(len(savings), permutations, seed)] @ one)


def standard_ranks(values: Values) -> Values:
    """Ranks along the last axis, ties averaged, of mean 0 and length 1; zeros where all are tied."""
    ranks = rankdata(values, axis=-1)
    ranks = ranks - ranks.mean(axis=-1, keepdims=True)
    length = np.sqrt((ranks**2).sum(axis=-1, keepdims=True))
    return np.asarray(ranks / np.where(length > 0, length, 1.0))


def correlations(scores: Mapping[str, Values], savings: Values, seed: int = 0) -> pd.DataFrame:
    """Spearman's correlation of every score over all trainings, with intervals that hold for all in 95 %.

    Trainings are drawn again; Fisher's z of each correlation, the largest distance from what was found, each
    over its standard deviation (max-T; Romano and Wolf 2005). A score that does not vary is left out.
    """
    names = [name for name, one in scores.items() if np.ptp(one) > 0]
    if not names or np.ptp(savings) == 0:
        return pd.DataFrame(columns=["score", "value", "low", "high"])
    count = len(savings)
    counts = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=DRAWS)
    drawn = np.array([np.arange(count), *(np.repeat(np.arange(count), one) for one in counts)])
    ranks = standard_ranks(savings[drawn])
    found = np.stack([(standard_ranks(scores[name][drawn]) * ranks).sum(1) for name in names], axis=1)
    tied = np.stack([np.ptp(scores[name][drawn], axis=1) == 0 for name in names], axis=1)
    found = np.where(tied | (np.ptp(savings[drawn], axis=1) == 0)[:, None], np.nan, found)
    z = np.arctanh(np.clip(found, -LARGEST, LARGEST))
    spread = np.nanstd(z[1:], axis=0)
    far = np.nanquantile(np.nanmax(np.abs(z[1:] - z[0]) / spread, axis=1), 1 - LEVEL)
    low, high = np.tanh(z[0] - far * spread), np.tanh(z[0] + far * spread)
    return pd.DataFrame({"score": names, "value": found[0], "low": low, "high": high})
