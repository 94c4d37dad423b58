"""Effects of factors on endpoints: fitted, tested together by permutation, with the error of a seed.

As docs/lab/preregistered.md has it: cells are means over seeds; the test permutes residuals of the full fit
jointly over endpoints (ter Braak, "Permutation versus bootstrap significance tests", 1992) and takes the
largest |t| over all effects and endpoints, step-down (Westfall and Young 1993).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from scipy.stats import t as student

from offramp.errors import InputError
from offramp.lab.effects.factors import FACTORS, Signs, pairs
from offramp.lab.effects.runs import Block, Values

PERMUTATIONS = 9_999
LEVEL = 0.05

Word = Literal["lower", "higher", "no difference", "cannot be told"]


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
        squares = ((values - means[cell_of.ravel()]) ** 2).sum(0)
        variance = squares / freedom if freedom else np.full(values.shape[1], np.nan)
        return cls(cells, means, member @ losses / seeds, seeds.astype(np.int64), variance, freedom)


@dataclass(frozen=True)
class Fit:
    """Least squares of endpoints on columns. effects: plus minus minus, twice the coefficients, float64
    [columns, endpoints]; t likewise. residuals [cells, endpoints]. freedom: of the residuals.
    """

    effects: Values
    t: Values
    residuals: Values
    freedom: int


@dataclass(frozen=True)
class Effect:
    """One factor on one endpoint. value: plus minus minus, at matched loss. low, high: 95 % by the error of a
    seed. p: of the residuals, two-sided; adjusted: over all effects and endpoints. with_loss, p_with_loss: at
    the last step, with the last loss as covariate. detectable: with 80 % power. None: not to be had.
    """

    factor: str
    endpoint: str
    value: float
    low: float | None
    high: float | None
    adjusted: float
    with_loss: float
    p_with_loss: float
    detectable: float | None
    word: Word


def fit(columns: Values, values: Values, covariate: Values | None = None) -> Fit:
    """Fit a mean, the columns [cells, columns], and a covariate [cells] to values [cells, endpoints].

    Raises InputError for columns that cannot be told apart, or leave nothing over for an error.
    """
    design = _design(columns, covariate)
    freedom = len(design) - design.shape[1]
    if freedom < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        raise InputError(
            f"{len(design)} cells do not tell {design.shape[1]} effects apart",
            where="the table",
            fix="add the runs of the design that are missing (docs/lab/preregistered.md)",
        )
    return _fitted(design, values, columns.shape[1], freedom)


def _design(columns: Values, covariate: Values | None) -> Values:
    parts = [np.ones(len(columns))[:, None], columns.astype(np.float64)]
    if covariate is not None:
        parts.append((covariate - covariate.mean())[:, None])
    return np.concatenate(parts, axis=1)


def _fitted(design: Values, values: Values, count: int, freedom: int) -> Fit:
    """values: [..., cells, endpoints], any number of data sets at once."""
    inverse = np.linalg.inv(design.T @ design)
    coefficients = inverse @ design.T @ values
    residuals = values - design @ coefficients
    variance = (residuals**2).sum(-2, keepdims=True) / freedom
    asked = slice(1, 1 + count)
    errors = np.sqrt(variance * np.diag(inverse)[asked, None])
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(errors > 0, coefficients[..., asked, :] / errors, 0.0)
    return Fit(2 * coefficients[..., asked, :], t, residuals, freedom)


def largest_by_chance(columns: Values, found: Fit, permutations: int, seed: int) -> Values:
    """|t| without any effect, residuals in random orders: float64 [permutations, columns, endpoints]."""
    design = _design(columns, None)
    generator = np.random.default_rng(seed)
    orders = generator.permuted(np.tile(np.arange(len(design)), (permutations, 1)), axis=1)
    return np.abs(_fitted(design, found.residuals[orders], columns.shape[1], found.freedom).t)


def step_down(t: Values, chance: Values) -> Values:
    """Adjusted p-values of all |t| together, of the shape of t.

    chance: |t| without effects, [permutations, *shape of t]. The largest is held against the largest by
    chance, the next against the largest of those that are left; none gets a smaller value than one before.
    """
    flat, by_chance = np.abs(t).ravel(), chance.reshape(len(chance), -1)
    order = np.argsort(-flat, kind="stable")
    left = np.maximum.accumulate(by_chance[:, order[::-1]], axis=1)[:, ::-1]
    p = (1 + (left >= flat[order]).sum(0)) / (1 + len(chance))
    adjusted = np.empty(len(flat))
    adjusted[order] = np.maximum.accumulate(p)
    return adjusted.reshape(t.shape)


def main_effects(
    block: Block, smallest: Values, *, permutations: int = PERMUTATIONS, seed: int = 0
) -> tuple[Effect, ...]:
    """The effect of every factor on every endpoint, endpoints outermost.

    smallest: of each endpoint the smallest effect that matters, float64 [endpoints]. Raises InputError for a
    table that does not tell the factors apart.
    """
    cells = Cells.of(block.signs, block.matched, block.losses)
    last = Cells.of(block.signs, block.last, block.losses)
    columns = cells.signs.astype(np.float64)
    found = fit(columns, cells.values)
    chance = largest_by_chance(columns, found, permutations, seed)
    adjusted = step_down(found.t, chance)
    limit = float(np.quantile(chance.reshape(len(chance), -1).max(1), 1 - LEVEL))
    varies = float(np.ptp(last.losses)) > 0
    with_loss = fit(columns, last.values, last.losses if varies else None)
    p_with_loss = 2 * student.sf(np.abs(with_loss.t), with_loss.freedom)
    errors = seed_errors(columns, cells)
    effects = []
    for place, endpoint in enumerate(block.endpoints):
        for row, factor in enumerate(FACTORS):
            error = float(errors[row, place]) if cells.freedom else None
            value = float(found.effects[row, place])
            half = None if error is None else float(student.ppf(0.975, cells.freedom)) * error
            effect = Effect(
                factor=factor,
                endpoint=endpoint,
                value=value,
                low=None if half is None else value - half,
                high=None if half is None else value + half,
                adjusted=float(adjusted[row, place]),
                with_loss=float(with_loss.effects[row, place]),
                p_with_loss=float(p_with_loss[row, place]),
                detectable=None
                if error is None
                else (limit + float(student.ppf(0.8, cells.freedom))) * error,
                word="cannot be told",
            )
            within = (
                error is not None
                and abs(value) + float(student.ppf(0.95, cells.freedom)) * error < smallest[place]
            )
            effects.append(_with_word(effect, within))
    return tuple(effects)


def seed_errors(columns: Values, cells: Cells) -> Values:
    """Standard errors of effects by the error of a seed, float64 [columns, endpoints]: cells of more seeds
    count as surer."""
    design = _design(columns, None)
    weights = 2 * np.linalg.inv(design.T @ design) @ design.T
    spread = np.sqrt((weights**2 / cells.seeds).sum(1))[1 : 1 + columns.shape[1]]
    return np.asarray(np.outer(spread, np.sqrt(cells.variance)))


def _with_word(effect: Effect, within: bool) -> Effect:
    """What is said of it. within: the 90 % interval lies within the smallest effect that matters."""
    sure = (
        effect.adjusted <= LEVEL
        and effect.low is not None
        and effect.high is not None
        and effect.low * effect.high > 0
        and effect.with_loss * effect.value > 0
        and effect.p_with_loss <= LEVEL
    )
    word: Word = "no difference" if within else "cannot be told"
    if sure:
        word = "higher" if effect.value > 0 else "lower"
    return replace(effect, word=word)


def pair_effects(block: Block, *, permutations: int = PERMUTATIONS, seed: int = 0) -> dict[str, Values]:
    """By name of a pair of factors its effects, and below them adjusted p-values: float64 [2, endpoints].

    Exploratory: residuals of the main-effects fit are permuted (Freedman and Lane 1983), and effects divided
    by the error of a seed; where an endpoint has none, as no two seeds differ, its adjusted p-values are 1.
    Empty without replicates, and where a cell of the design is missing.
    """
    cells = Cells.of(block.signs, block.matched, block.losses)
    if not cells.freedom:
        return {}
    main = cells.signs.astype(np.float64)
    names, products = pairs(cells.signs)
    every = np.concatenate([main, products], axis=1)
    if not np.array_equal(every.T @ every, len(every) * np.eye(every.shape[1])):
        return {}
    found = fit(main, cells.values)
    residuals = found.residuals
    weights = 2 * products.T / len(products)  # all columns are at right angles
    effects = weights @ residuals
    errors = seed_errors(products.astype(np.float64), cells)
    generator = np.random.default_rng(seed)
    orders = generator.permuted(np.tile(np.arange(len(residuals)), (permutations, 1)), axis=1)
    # A random order spreads over all columns what the residuals have in those of pairs alone.
    spread = np.sqrt((len(residuals) - 1) / found.freedom)
    chance = np.abs(weights @ residuals[orders]) * spread
    with np.errstate(divide="ignore", invalid="ignore"):
        t, by_chance = (np.where(errors > 0, one / errors, 0.0) for one in (effects, chance))
    adjusted = step_down(t, by_chance)
    return {name: np.stack([effects[row], adjusted[row]]) for row, name in enumerate(names)}
