"""Families 1 and 2: factors and pairs of factors, fitted, tested by permutation, with the error of a seed.

As docs/lab/preregistered.md has it: cells are means over seeds; the test permutes residuals of the full fit
jointly over endpoints (ter Braak, "Permutation versus bootstrap significance tests", 1992) and takes the
largest |t| over all effects and endpoints, step-down (Westfall and Young 1993).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
from scipy.stats import t as student

from offramp.errors import InputError
from offramp.lab.effects.effect import (
    PERMUTATIONS,
    SMALLEST,
    Effect,
    beyond_rounding,
    largest_limit,
    make_effects,
    step_down,
    two_sided,
)
from offramp.lab.effects.factors import FACTORS, LEVELS, Signs, pairs
from offramp.lab.effects.matching import Block
from offramp.lab.effects.runs import Values
from offramp.scoring.rank_correlation import LEVEL, holm

CORNERS = {"GPT-2-like": (-1, -1, -1, -1, -1), "Llama-like": (1, 1, 1, 1, -1)}
"""Signs of the two corners of interest; residuals are plain in both."""

CORNERS_NAME = "Llama-like - GPT-2-like"
NEWER = FACTORS[:4]
"""What sets the corners apart."""


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


@dataclass(frozen=True)
class Fit:
    """Least squares of endpoints on columns. effects: plus minus minus, twice the coefficients, float64
    [columns, endpoints]; t likewise. residuals [cells, endpoints]. freedom, variance: of the residuals.
    inverse: of the columns' normal equations, [columns, columns].
    """

    effects: Values
    t: Values
    residuals: Values
    freedom: int
    variance: Values
    inverse: Values

    def p_of_sum(self, columns: int) -> tuple[Values, Values]:
        """The sum of the first effects and its unadjusted p-value, float64 [endpoints] each."""
        total = self.effects[:columns].sum(0)
        error = 2 * np.sqrt(self.variance * self.inverse[:columns, :columns].sum())
        return total, two_sided(total, error, self.freedom)


def fit(columns: Values, values: Values, covariate: Values | None = None) -> Fit:
    """Fit a mean, the columns [cells, columns], and a covariate [cells] to values [cells, endpoints].

    Raises InputError for columns that cannot be told apart, or leave nothing over for an error.
    """
    design = _design(columns, covariate)
    freedom = len(design) - design.shape[1]
    if freedom < 1 or np.linalg.matrix_rank(design) < design.shape[1]:
        raise InputError(
            f"{len(design)} cells do not tell {columns.shape[1]} factors apart",
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
    effects = 2 * coefficients[..., asked, :]
    return Fit(effects, t, residuals, freedom, variance[..., 0, :], np.asarray(inverse[asked, asked]))


def largest_by_chance(columns: Values, found: Fit, permutations: int, seed: int) -> Values:
    """t without any effect, residuals in random orders: float64 [permutations, columns, endpoints]."""
    orders = _orders(len(columns), permutations, seed)
    return _fitted(_design(columns, None), found.residuals[orders], columns.shape[1], found.freedom).t


def _orders(count: int, permutations: int, seed: int) -> Signs:
    generator = np.random.default_rng(seed)
    return generator.permuted(np.tile(np.arange(count), (permutations, 1)), axis=1)


def main_effects(
    block: Block,
    smallest: Mapping[str, float] = SMALLEST,
    *,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> tuple[Effect, ...]:
    """The effect of every factor that has both levels on every endpoint, endpoints outermost; then, where
    both corners have been trained, the difference between them.

    smallest: by endpoint, the smallest effect that matters. Raises InputError for a table that does not tell
    the factors apart.
    """
    cells = Cells.of(block.signs, block.matched, block.losses)
    varied = cells.varied
    columns = cells.signs[:, varied].astype(np.float64)
    found = fit(columns, cells.values)
    last = Cells.of(block.signs, block.last, block.losses)
    varies = float(np.ptp(last.losses)) > 0
    with_loss = fit(columns, last.values, last.losses if varies else None)
    chance = largest_by_chance(columns, found, permutations, seed)
    adjusted, limit = step_down(found.t, chance), largest_limit(chance)
    p_with_loss = 2 * student.sf(np.abs(with_loss.t), with_loss.freedom)
    errors = seed_errors(columns, cells)
    effects = make_effects(
        "1",
        [(FACTORS[factor], endpoint) for endpoint in block.endpoints for factor in varied],
        found.effects,
        errors,
        freedom=cells.freedom,
        adjusted=adjusted,
        limit=limit,
        smallest=smallest,
        with_loss=(with_loss.effects, p_with_loss),
    )
    newer = len(NEWER) if varied[: len(NEWER)] == list(range(len(NEWER))) else 0
    return (*effects, *(_corners(block, with_loss.p_of_sum(newer), smallest) if newer else ()))


def _corners(
    block: Block, with_loss: tuple[Values, Values], smallest: Mapping[str, float]
) -> tuple[Effect, ...]:
    """Llama-like less GPT-2-like at matched loss, by the error of their seeds; none without either."""
    old, new = (block.matched[(block.signs == signs).all(1)] for signs in CORNERS.values())
    freedom = len(old) + len(new) - 2
    if not (len(old) and len(new) and freedom):
        return ()
    squares = sum(((one - one.mean(0)) ** 2).sum(0) for one in (old, new))
    errors = np.sqrt(
        beyond_rounding(np.asarray(squares), np.concatenate([old, new]))
        / freedom
        * (1 / len(old) + 1 / len(new))
    )
    values = new.mean(0) - old.mean(0)
    p = two_sided(values, errors, freedom)
    return make_effects(
        "corners",
        [(CORNERS_NAME, endpoint) for endpoint in block.endpoints],
        values,
        errors,
        freedom=freedom,
        adjusted=np.array(holm(p.tolist()), dtype=np.float64),
        limit=float(student.ppf(1 - LEVEL / 2 / len(values), freedom)),
        smallest=smallest,
        with_loss=with_loss,
    )


def seed_errors(columns: Values, cells: Cells) -> Values:
    """Standard errors of effects by the error of a seed, float64 [columns, endpoints]: cells of more seeds
    count as surer."""
    design = _design(columns, None)
    weights = 2 * np.linalg.inv(design.T @ design) @ design.T
    spread = np.sqrt((weights**2 / cells.seeds).sum(1))[1 : 1 + columns.shape[1]]
    return np.asarray(np.outer(spread, np.sqrt(cells.variance)))


def pair_effects(block: Block, *, permutations: int = PERMUTATIONS, seed: int = 0) -> tuple[Effect, ...]:
    """The effects of all pairs of factors on every endpoint: indications, never claims.

    Residuals of the main-effects fit are permuted (Freedman and Lane 1983), and effects divided by the error
    of a seed; where an endpoint has none, as no two seeds differ, its adjusted p-values are 1. Empty without
    replicates, and where a cell of the design is missing.
    """
    cells = Cells.of(block.signs, block.matched, block.losses)
    main = cells.signs.astype(np.float64)
    names, products = pairs(cells.signs)
    every = np.concatenate([main, products], axis=1)
    if not cells.freedom or not np.array_equal(every.T @ every, len(every) * np.eye(every.shape[1])):
        return ()
    found = fit(main, cells.values)
    weights = 2 * products.T / len(products)  # all columns are at right angles
    effects = weights @ found.residuals
    errors = seed_errors(products.astype(np.float64), cells)
    # A random order spreads over all columns what the residuals have in those of pairs alone.
    spread = np.sqrt((len(main) - 1) / found.freedom)
    by_chance = weights @ found.residuals[_orders(len(main), permutations, seed)] * spread
    with np.errstate(divide="ignore", invalid="ignore"):
        t, chance = (np.where(errors > 0, one / errors, 0.0) for one in (effects, by_chance))
    adjusted, limit = step_down(t, chance), largest_limit(chance)
    sized = make_effects(
        "2",
        [(name, endpoint) for endpoint in block.endpoints for name in names],
        effects,
        errors,
        freedom=cells.freedom,
        adjusted=adjusted,
        limit=limit,
        smallest={},
    )
    return tuple(
        replace(one, word="indication" if one.adjusted <= LEVEL else "cannot be told") for one in sized
    )


def tells_apart(signs: Signs) -> bool:
    """Whether the cells tell the factors with both levels apart, and leave an error beside the loss.

    signs: int64 [runs, factors].
    """
    cells = np.unique(signs, axis=0)
    varied = cells[:, np.ptp(cells, axis=0) > 0]
    design = _design(varied.astype(np.float64), None)
    full = np.linalg.matrix_rank(design) == design.shape[1]
    return bool(varied.shape[1] and full and len(cells) > design.shape[1] + 1)


def untested(signs: Signs) -> list[str]:
    """What the cells that are there do not tell, in words. signs: int64 [runs, factors]."""
    found = []
    for place, factor in enumerate(FACTORS):
        if len(levels := set(signs[:, place].tolist())) == 1:
            level = LEVELS[factor][(levels.pop() + 1) // 2]
            found.append(f"{factor} is {level} in every run that counts, and is not tested")
    if (cells := len(np.unique(signs, axis=0))) < 16:
        found.append(
            f"{cells} of 16 cells are there: main effects and pairs are not at right angles, an effect may "
            "hold a part of what pairs do, and pairs are not tested"
        )
    return found
