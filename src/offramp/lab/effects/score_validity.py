"""Family 6: whether one score, chosen on half of the trainings, tells on the other half what is saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import norm

from offramp.files import sha256_of_text
from offramp.lab.effects.effect import PERMUTATIONS
from offramp.lab.effects.runs import ORACLE, Values
from offramp.scoring.rank_correlation import BASES_NEEDED, LEVEL, spearman

DRAWS = 1_999
LARGEST = 0.9999
"""Of a correlation whose Fisher's z is taken."""


@dataclass(frozen=True)
class Correlation:
    """Spearman's correlation of a score with what is saved. low, high: 95 %, for all scores of a table
    together."""

    score: str
    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Choice:
    """The candidate with the largest correlation in the first half, found, and in the second, confirmed.

    p: one-sided, of the second. detectable: correlation (docs/lab/preregistered.md).
    """

    score: str
    found: float
    confirmed: float
    p: float
    detectable: float


@dataclass(frozen=True)
class ScoreValidity:
    """table: every candidate and the oracle over all trainings; it claims nothing. halves: trainings in each.

    choice: None where nothing can be told, and untold says why. without_recurrent: the same without trainings
    whose layers run whatever their exits say, if there are any: what they save is a fact about caches.
    """

    table: tuple[Correlation, ...]
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
    order = sorted(range(len(names)), key=lambda place: sha256_of_text(f"offramp lab half {names[place]}"))
    first, second = order[: len(order) // 2], order[len(order) // 2 :]
    table = correlations(scores, savings) if len(names) >= BASES_NEEDED else ()
    made = ScoreValidity(table, (len(first), len(second)))
    if len(second) < BASES_NEEDED:
        return replace(made, untold=f"{len(second)} trainings in the second half, {BASES_NEEDED} are needed")
    candidates = {name: _plain(one[first], savings[first]) for name, one in scores.items() if name != ORACLE}
    candidates = {name: value for name, value in candidates.items() if np.isfinite(value)}
    if not candidates:
        return replace(made, untold="in the first half all savings, or all values of every score, are equal")
    chosen = max(candidates, key=lambda name: candidates[name])
    confirmed = _plain(scores[chosen][second], savings[second])
    if not np.isfinite(confirmed):
        return replace(made, untold=f"in the second half all savings, or all values of {chosen}, are equal")
    chance = by_chance(scores[chosen][second], savings[second], permutations)
    p = float((1 + (chance >= confirmed - 1e-9).sum()) / (1 + permutations))
    limit = np.arctanh(min(float(np.quantile(chance, 1 - LEVEL)), LARGEST))
    spread = np.sqrt(1.06 / (len(second) - 3))  # Fieller, Hartley and Pearson 1957
    detectable = float(np.tanh(limit + norm.ppf(0.8) * spread))
    return replace(made, choice=Choice(chosen, candidates[chosen], confirmed, p, detectable))


def _plain(scores: Values, savings: Values) -> float:
    return float(spearman(scores[None], savings, np.ones((1, len(savings))))[0, 0])


def by_chance(scores: Values, savings: Values, permutations: int, seed: int = 0) -> Values:
    """Correlations of scores with savings in random orders: float64 [permutations]."""
    generator = np.random.default_rng(seed)
    orders = generator.permuted(np.tile(np.arange(len(savings)), (permutations, 1)), axis=1)
    one, other = (_standard_ranks(values) for values in (scores, savings))
    return np.asarray(other[orders] @ one)


def _standard_ranks(values: Values) -> Values:
    """Ranks, ties averaged, of mean 0 and length 1; zeros where all are tied."""
    ranks = (values[:, None] > values).sum(1) + 0.5 * (values[:, None] == values).sum(1)
    ranks = ranks - ranks.mean()
    length = float(np.sqrt((ranks**2).sum()))
    return np.asarray(ranks / length if length else ranks)


def correlations(scores: Mapping[str, Values], savings: Values, seed: int = 0) -> tuple[Correlation, ...]:
    """Every score over all trainings, with intervals that hold for all together in 95 %.

    Trainings are drawn again; Fisher's z of each correlation, the largest distance from what was found, each
    over its standard deviation (max-T; Romano and Wolf 2005). A score that does not vary is left out.
    """
    names = [name for name, one in scores.items() if np.ptp(one) > 0]
    if not names or np.ptp(savings) == 0:
        return ()
    drawn = np.random.default_rng(seed).multinomial(
        len(savings), np.full(len(savings), 1 / len(savings)), size=DRAWS
    )
    weights = np.concatenate([np.ones((1, len(savings))), drawn])
    found = spearman(np.stack([scores[name] for name in names]), savings, weights)
    z = np.arctanh(np.clip(found, -LARGEST, LARGEST))
    spread = np.nanstd(z[1:], axis=0)
    far = np.nanquantile(np.nanmax(np.abs(z[1:] - z[0]) / spread, axis=1), 1 - LEVEL)
    low, high = np.tanh(z[0] - far * spread), np.tanh(z[0] + far * spread)
    return tuple(
        Correlation(name, float(found[0, place]), float(low[place]), float(high[place]))
        for place, name in enumerate(names)
    )
