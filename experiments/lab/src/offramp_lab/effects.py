"""Effects with their tests: factors by permutation, kinds by relabelling, differences by flips of signs.

All tests of a family stand together: the largest |t| by chance, step-down (Westfall and Young 1993).
Intervals are by the error of a seed. As `docs/preregistered.md` has it.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import pandas as pd
import statsmodels.api as sm
from numpy.typing import NDArray
from scipy.stats import t as student

from offramp_lab.design import FACTORS
from offramp_lab.runs import (
    CALIBRATION,
    CORNERS,
    KINDS,
    REPRESENTATION,
    REPRESENTATION_LENS,
    SKIPPED,
    SKIPPED_LENS,
    SKIPPED_THIRD,
    Block,
    Signs,
    Values,
    signs_of,
)

LEVEL = 0.05
"""Chance of any false claim in a family."""
PERMUTATIONS = 9_999
SMALLEST: Mapping[str, float] = {
    SKIPPED: 0.05,
    SKIPPED_LENS: 0.05,
    **dict.fromkeys(SKIPPED_THIRD, 0.05),
    REPRESENTATION: 0.03,
    REPRESENTATION_LENS: 0.03,
    CALIBRATION: 0.03,
}
"""The smallest effect that matters, by endpoint."""

ENUMERATED = 12
"""Up to so many values all flips of signs are taken, else so many at random as are asked for."""

CORNERS_NAME = "Llama-like - GPT-2-like"
NEWER = FACTORS[:4]
"""What sets the corners apart."""

UNTOLD = "cannot be told"

Test = tuple[str, str]
"""What is compared, and the endpoint."""


def make_effects(
    family: str,
    tests: Sequence[Test],
    values: Values,
    errors: Values,
    *,
    freedom: int,
    adjusted: Values,
    limit: float,
    smallest: Mapping[str, float],
    reachable: Values | None = None,
    with_loss: tuple[Values, Values] | None = None,
    at_tokens: tuple[Values, Values] | None = None,
) -> pd.DataFrame:
    """A row for each test: effect, interval and word ("lower", "higher", "no difference", UNTOLD).

    tests: endpoints outermost. values, adjusted, errors: float64 [tests] or [compared, endpoints]; errors by
    the error of a seed, 0 or NaN for none, and then there is no interval. adjusted: p-values, over all that
    is tested together. limit: of the largest |t| by chance the 95 % point; `detectable` is it and t at 80 %,
    times the error. smallest: by endpoint. reachable: like values, the largest effect that the same figures
    could have shown; None where nothing bounds it. Where even that would have been called "no difference"
    the test could not have failed, and says nothing (`could_fail`).

    with_loss, at_tokens: effects and unadjusted p-values at the last step, with the last loss as covariate,
    and after the same tokens, where these are asked for: "lower" and "higher" need each of them too.
    """
    none = np.full_like(values, np.nan)
    columns = {"value": values, "error": errors, "adjusted": adjusted}
    columns["reachable"] = none if reachable is None else reachable
    columns["with_loss"], columns["p_with_loss"] = with_loss or (none, none)
    columns["at_tokens"], columns["p_at_tokens"] = at_tokens or (none, none)
    found = pd.DataFrame(tests, columns=["name", "endpoint"]).assign(
        family=family, **{name: column.T.ravel() for name, column in columns.items()}
    )
    value, error = found["value"], found["error"].where(found["error"] > 0)
    quantile = {share: float(student.ppf(share, freedom)) for share in (0.8, 0.95, 0.975)}
    found["low"], found["high"] = value - quantile[0.975] * error, value + quantile[0.975] * error
    found["detectable"] = (limit + quantile[0.8]) * error
    sure = (found["adjusted"] <= LEVEL) & (found["low"] * found["high"] > 0)
    for name, asked in (("with_loss", with_loss), ("at_tokens", at_tokens)):
        if asked is not None:
            sure &= (found[name] * value > 0) & (found[f"p_{name}"] <= LEVEL)
    half, matters = quantile[0.95] * error, found["endpoint"].map(smallest).fillna(0.0)
    found["could_fail"] = ~(found["reachable"] + half < matters)  # also where nothing bounds it
    small = (value.abs() + half < matters) & found["could_fail"]
    words = [np.where(value > 0, "higher", "lower"), np.full(len(found), "no difference")]
    found["word"] = np.select([sure, small], words, default=UNTOLD)
    return found[COLUMNS]


COLUMNS = [
    *("family", "name", "endpoint", "value", "low", "high", "adjusted", "detectable", "word"),
    *("reachable", "could_fail", "with_loss", "p_with_loss", "at_tokens", "p_at_tokens"),
]
NONE = pd.DataFrame(columns=COLUMNS)


def two_sided(values: Values, errors: Values, freedom: int) -> Values:
    """Unadjusted p-values of t, 1 where there is no error. values, errors: alike in shape."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(errors > 0, 2 * student.sf(np.abs(values) / errors, freedom), 1.0))


def holm(p: Values) -> Values:
    """Adjusted p-values (Holm 1979). statsmodels' own collects garbage at each call, a third of a second."""
    order = np.argsort(p, kind="stable")
    adjusted = np.empty(len(p))
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1)), 1.0)
    return adjusted


def step_down(t: Values, chance: Values) -> Values:
    """Adjusted p-values of all |t| together, of the shape of t.

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


def largest_by_label(weights: Values, values: Values) -> Values:
    """The largest |effect| that units could show if their labels were dealt otherwise, [effects, endpoints].

    An effect is a sum of weights times values; it is largest where both are in one order (or in opposite
    ones). Of 16 cells, 8 of either level: the mean of the 8 largest less that of the 8 smallest. weights:
    [effects, units]; values: [units, endpoints].
    """
    weights, values = np.sort(weights, axis=1), np.sort(values, axis=0)
    return np.maximum(np.abs(weights @ values), np.abs(weights @ values[::-1]))


def ratio(above: Values, below: Values) -> Values:
    """0 where nothing is below."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(below > 0, above / below, 0.0))


def contrasts_of(design: Values, values: Values, contrasts: Values) -> tuple[Values, Values]:
    """Least squares: contrasts of the coefficients and their p-values, float64 [contrasts, endpoints].

    design: [units, columns]; values: [units, endpoints]; contrasts: [contrasts, columns].
    """
    tests = [sm.OLS(column, design).fit().t_test(contrasts) for column in values.T]
    effects, errors = (np.stack([getattr(one, name) for one in tests], axis=1) for name in ("effect", "sd"))
    return effects, two_sided(effects, errors.reshape(effects.shape), int(tests[0].df_denom))


@dataclass(frozen=True)
class Cells:
    """Combinations of levels, ascending. values, losses: means over a cell's runs. seeds: how many they are.

    signs [cells, factors], values [cells, endpoints], losses [cells], seeds [cells]. variance: of a run
    about its cell, pooled, float64 [endpoints], NaN without replicates. freedom: degrees of it.
    """

    signs: Signs
    values: Values
    losses: Values
    seeds: Signs
    variance: Values
    freedom: int

    @classmethod
    def of(cls, signs: Signs, values: Values, losses: Values) -> Cells:
        """Of runs: signs [runs, factors], values [runs, endpoints], losses [runs]."""
        cells, cell_of = np.unique(signs, axis=0, return_inverse=True)
        member = np.equal.outer(np.arange(len(cells)), cell_of.ravel()).astype(np.float64)
        seeds = member.sum(1)
        means = member @ values / seeds[:, None]
        freedom = len(values) - len(cells)
        squares = beyond_rounding(((values - means[cell_of.ravel()]) ** 2).sum(0), values)
        variance = squares / freedom if freedom else np.full(values.shape[1], np.nan)
        return cls(cells, means, member @ losses / seeds, seeds.astype(np.int64), variance, freedom)

    @property
    def varied(self) -> list[int]:
        """Places of the factors that have both levels."""
        return [place for place, column in enumerate(self.signs.T) if len(set(column.tolist())) > 1]

    def seed_errors(self, columns: Values) -> Values:
        """Standard errors of effects by the error of a seed, float64 [columns, endpoints].

        Cells of more seeds count as surer.
        """
        spread = np.sqrt((weights_of(columns) ** 2 / self.seeds).sum(1))
        return np.asarray(np.outer(spread, np.sqrt(self.variance)))


def with_mean(columns: Values, covariate: Values | None = None) -> Values:
    """A design: ones, columns [cells, columns], and a covariate [cells] without its mean."""
    parts = [np.ones(len(columns))[:, None], columns.astype(np.float64)]
    if covariate is not None:
        parts.append((covariate - covariate.mean())[:, None])
    return np.concatenate(parts, axis=1)


def weights_of(columns: Values) -> Values:
    """With what each cell counts in the effect (plus minus minus) of each column, [columns, cells]."""
    design = with_mean(columns)
    return np.asarray(2 * (np.linalg.inv(design.T @ design) @ design.T)[1:])


def fitted(columns: Values, values: Values) -> tuple[Values, Values, Values]:
    """Least squares of any number of data sets at once, [..., cells, endpoints], on a mean and columns.

    Effects (plus minus minus, twice the coefficients) and t, [..., columns, endpoints], and residuals.
    """
    design = with_mean(columns)
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ values
    residuals = values - design @ coefficients
    variance = (residuals**2).sum(-2, keepdims=True) / (len(design) - design.shape[1])
    errors = np.sqrt(variance * np.diag(inverse)[1:, None])
    found = coefficients[..., 1:, :]
    return 2 * found, ratio(found, errors), residuals


def orders(count: int, permutations: int, seed: int) -> Signs:
    """Random orders of so many units: int64 [permutations, count]."""
    generator = np.random.default_rng(seed)
    return generator.permuted(np.tile(np.arange(count), (permutations, 1)), axis=1)


def main_effects(
    block: Block, smallest: Mapping[str, float] = SMALLEST, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> pd.DataFrame:
    """The effect of every factor that has both levels on every endpoint, endpoints outermost; then, where
    both corners have been trained, the difference between them.

    Cells are means over seeds; residuals of the full fit are permuted jointly over endpoints (ter Braak,
    "Permutation versus bootstrap significance tests", 1992). The runs must tell the factors apart.
    """
    signs, losses = signs_of(block.runs), block.runs["loss"].to_numpy()
    cells = Cells.of(signs, block.matched, losses)
    varied = cells.varied
    columns = cells.signs[:, varied].astype(np.float64)
    effects, t, residuals = fitted(columns, cells.values)
    chance = fitted(columns, residuals[orders(len(columns), permutations, seed)])[1]
    last = Cells.of(signs, block.last, losses)
    design = with_mean(columns, last.losses if np.ptp(last.losses) > 0 else None)
    each = 2 * np.eye(design.shape[1])[1 : 1 + len(varied)]
    found = make_effects(
        "1",
        [(FACTORS[factor], endpoint) for endpoint in block.endpoints for factor in varied],
        effects,
        cells.seed_errors(columns),
        freedom=cells.freedom,
        adjusted=step_down(t, chance),
        limit=largest_limit(chance),
        smallest=smallest,
        reachable=largest_by_label(weights_of(columns), cells.values),
        with_loss=contrasts_of(design, last.values, each),
    )
    if varied[: len(NEWER)] != list(range(len(NEWER))):
        return found
    together = contrasts_of(design, last.values, each[: len(NEWER)].sum(0, keepdims=True))
    return joined([found, _corners(block, signs, together, smallest)])


def joined(frames: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """All rows of some effects."""
    some = [frame for frame in frames if len(frame)]
    return pd.concat(some, ignore_index=True) if some else NONE


def _corners(
    block: Block, signs: Signs, with_loss: tuple[Values, Values], smallest: Mapping[str, float]
) -> pd.DataFrame:
    """Llama-like less GPT-2-like at matched loss."""
    old, new = (block.matched[(signs == corner).all(1)] for corner in CORNERS.values())
    of_corners = (with_loss[0][0], with_loss[1][0])
    return seeds_apart("corners", CORNERS_NAME, block.endpoints, old, new, smallest, with_loss=of_corners)


def seeds_apart(
    family: str,
    name: str,
    endpoints: Sequence[str],
    old: Values,
    new: Values,
    smallest: Mapping[str, float],
    with_loss: tuple[Values, Values] | None = None,
) -> pd.DataFrame:
    """The new less the old by the error of their seeds, p by Holm over endpoints; none without either.

    old, new: float64 [seeds, endpoints].
    """
    freedom = len(old) + len(new) - 2
    if not (len(old) and len(new) and freedom):
        return NONE
    squares = np.asarray(sum(((one - one.mean(0)) ** 2).sum(0) for one in (old, new)))
    pooled = beyond_rounding(squares, np.concatenate([old, new])) / freedom
    errors = np.sqrt(pooled * (1 / len(old) + 1 / len(new)))
    values = new.mean(0) - old.mean(0)
    return make_effects(
        family,
        [(name, endpoint) for endpoint in endpoints],
        values,
        errors,
        freedom=freedom,
        adjusted=holm(two_sided(values, errors, freedom)),
        limit=float(student.ppf(1 - LEVEL / 2 / len(values), freedom)),
        smallest=smallest,
        reachable=np.maximum(old.mean(0), new.mean(0)),  # had one of them nothing of what the other has
        with_loss=with_loss,
    )


def pair_effects(block: Block, *, permutations: int = PERMUTATIONS, seed: int = 0) -> pd.DataFrame:
    """The effects of all pairs of factors on every endpoint: indications, never claims.

    Residuals of the main-effects fit are permuted (Freedman and Lane 1983), and effects divided by the error
    of a seed; where an endpoint has none, as no two seeds differ, its adjusted p-values are 1. Empty without
    replicates, and where a cell of the design is missing.
    """
    cells = Cells.of(signs_of(block.runs), block.matched, block.runs["loss"].to_numpy())
    main = cells.signs.astype(np.float64)
    places = list(itertools.combinations(range(main.shape[1]), 2))
    products = np.stack([main[:, one] * main[:, other] for one, other in places], axis=1)
    every = np.concatenate([main, products], axis=1)
    if not cells.freedom or not np.array_equal(every.T @ every, len(every) * np.eye(every.shape[1])):
        return NONE
    *_, residuals = fitted(main, cells.values)
    weights = 2 * products.T / len(products)  # all columns are at right angles
    effects, errors = weights @ residuals, cells.seed_errors(products)
    # A random order spreads over all columns what the residuals have in those of pairs alone.
    spread = np.sqrt((len(main) - 1) / (len(main) - main.shape[1] - 1))
    by_chance = weights @ residuals[orders(len(main), permutations, seed)] * spread
    chance = ratio(by_chance, errors)
    found = make_effects(
        "2",
        [
            (f"{FACTORS[one]} x {FACTORS[other]}", endpoint)
            for endpoint in block.endpoints
            for one, other in places
        ],
        effects,
        errors,
        freedom=cells.freedom,
        adjusted=step_down(ratio(effects, errors), chance),
        limit=largest_limit(chance),
        smallest={},
    )
    return found.assign(word=np.where(found["adjusted"] <= LEVEL, "indication", UNTOLD))


def tells_apart(signs: Signs) -> bool:
    """Whether the cells tell the factors with both levels apart, and leave an error beside the loss.

    signs: int64 [runs, factors].
    """
    cells = np.unique(signs, axis=0)
    varied = cells[:, np.ptp(cells, axis=0) > 0]
    design = with_mean(varied.astype(np.float64))
    full = np.linalg.matrix_rank(design) == design.shape[1]
    return bool(varied.shape[1] and full and len(cells) > design.shape[1] + 1)


@cache
def relabelings(sizes: tuple[int, ...]) -> NDArray[np.int64]:
    """Every way to deal runs to groups of these sizes: groups int64 [ways, runs], in the first way ascending.

    3, 4 and 4 runs: 11,550 ways.
    """
    found = [np.zeros(sum(sizes), dtype=np.int64)]
    for group in range(1, len(sizes)):
        count = sum(sizes[group:])
        dealt = []
        for labels in found:
            free = np.flatnonzero(labels == group - 1)
            for chosen in itertools.combinations(free.tolist(), len(free) - count):
                more = labels.copy()
                more[np.setdiff1d(free, chosen)] = group
                dealt.append(more)
        found = dealt
    return np.stack(found)


def group_t(values: Values, sizes: tuple[int, ...], ways: NDArray[np.int64]) -> tuple[Values, Values, Values]:
    """Each group less the next: t, difference and standard error, float64 [ways, groups - 1, endpoints] each.

    values: float64 [runs, endpoints]. The variance is that within all groups, pooled.
    """
    centred = values - values.mean(0)
    member = (ways[:, None, :] == np.arange(len(sizes))[None, :, None]).astype(np.float64)
    counts = np.array(sizes, dtype=np.float64)[:, None]
    means = member @ centred / counts
    squares = beyond_rounding((centred**2).sum(0) - (counts * means**2).sum(1), values)
    within = squares / (len(values) - len(sizes))
    differences = means[:, :-1] - means[:, 1:]
    errors = np.sqrt(within[:, None, :] * (1 / counts[:-1] + 1 / counts[1:]))
    return ratio(differences, errors), differences, errors


def kind_effects(block: Block, smallest: Mapping[str, float] = SMALLEST) -> pd.DataFrame:
    """Each kind less the next, at matched loss, by all relabelings; none without two kinds and an error."""
    of_run = block.runs["kind"].tolist()
    kinds = [kind for kind in KINDS if kind in of_run]
    order = sorted(range(len(of_run)), key=lambda place: kinds.index(of_run[place]))
    sizes = tuple(of_run.count(kind) for kind in kinds)
    freedom = len(order) - len(kinds)
    if len(kinds) < 2 or freedom < 2:  # the covariate takes another one
        return NONE
    t, differences, errors = group_t(block.matched[order], sizes, relabelings(sizes))
    means = np.stack([one.mean(0) for one in np.split(block.matched[order], np.cumsum(sizes)[:-1])])
    losses = block.runs["loss"].to_numpy()[order]
    member = np.repeat(np.eye(len(sizes)), sizes, axis=0)
    less_next = np.eye(len(sizes), len(sizes) + 1) - np.eye(len(sizes), len(sizes) + 1, k=1)
    design = np.concatenate([member, (losses - losses.mean())[:, None]], axis=1)
    return make_effects(
        "3",
        [
            (f"{first} - {second}", endpoint)
            for endpoint in block.endpoints
            for first, second in itertools.pairwise(kinds)
        ],
        differences[0],
        errors[0],
        freedom=freedom,
        adjusted=step_down(t[0], t[1:]),
        limit=largest_limit(t),
        smallest=smallest,
        reachable=np.maximum(means[:-1], means[1:]),  # as of two corners
        with_loss=contrasts_of(design, block.last[order], less_next[:-1]),
    )


def flips(count: int, permutations: int, seed: int) -> Values:
    """Signs, float64 [ways, count]: first as it is, then all others, or so many at random."""
    if count <= ENUMERATED:
        return np.array(list(itertools.product((1.0, -1.0), repeat=count)))
    drawn = np.random.default_rng(seed).choice((1.0, -1.0), size=(permutations, count))
    return np.concatenate([np.ones((1, count)), drawn])


def flipped_t(values: Values, signs: Values) -> tuple[Values, Values]:
    """t of the mean and its standard error: float64 [ways, tests] each. values [units, tests]."""
    count = len(values)
    means = signs @ values / count
    squares = beyond_rounding((values**2).sum(0) - count * means**2, values)
    errors = np.sqrt(squares / (count - 1) / count)
    return ratio(means, errors), errors


def flip_effects(
    family: str,
    tests: Sequence[Test],
    values: Values,
    smallest: Mapping[str, float],
    *,
    permutations: int,
    seed: int = 0,
    reachable: Values | None = None,
) -> pd.DataFrame:
    """Whether means are 0, all tested together by flips of the units' signs; none with fewer than two units.

    values: float64 [units, tests]. reachable: float64 [tests], of differences between what has a bound.
    """
    if len(values) < 2:
        return NONE
    t, errors = flipped_t(values, flips(len(values), permutations, seed))
    return make_effects(
        family,
        tests,
        values.mean(0),
        errors[0],
        freedom=len(values) - 1,
        adjusted=step_down(t[0], t[1:]),
        limit=largest_limit(t),
        smallest=smallest,
        reachable=reachable,
    )
