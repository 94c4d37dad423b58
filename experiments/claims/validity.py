"""Whether a score on one text tells what is saved on another: correlations, p-values, errors."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common import (
    BASES_NEEDED,
    LEVEL,
    LOWER_IS_BETTER,
    ORACLE,
    SAVED,
    SCORES,
    Values,
    fit_line,
    holm,
    read_table,
    run,
    tables_parser,
)

POINTS_NEEDED = 3
"""Below that, an order of models means nothing, not even as a description."""
DRAWS, PERMUTATIONS = 1000, 4999
"""So many permutations that the smallest p-value, 1 / 5,000, survives Holm over a table of 250 entries."""
AT_ONCE = 4_000_000
"""Pairs of permuted points held in memory at once."""
UNDEFINED_DRAWS_ALLOWED = 0.05


@dataclass(frozen=True)
class Transfer:
    """Scores on one text and savings on another, of the same cells and of their bases' means.

    cells: a line each, with `base`, every score (signed: more is better) and what is saved. scores: float64
    [scores, bases]; savings: [bases]; NaN where undefined.
    """

    cells: pd.DataFrame
    scores: Values
    savings: Values


def validity(
    leaderboard: pd.DataFrame,
    savings: pd.DataFrame,
    *,
    draws: int = DRAWS,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> pd.DataFrame:
    """Every score at every floor on every machine, against predicted and against measured savings.

    The score on text A stands against the saving on text B of the same cells, cells of one base averaged,
    for every ordered pair A != B; a figure is the mean over these. draws: of whole bases with replacement,
    for the intervals (percentile bootstrap, Efron 1979). permutations: of the savings of whole bases, for
    the one-sided p-values, adjusted over the table. Both from 12 bases on.
    """
    names = [name for name in SCORES if name in leaderboard]
    board = leaderboard.copy()
    board[list(LOWER_IS_BETTER)] *= -1.0
    lines = [
        {"basis": basis, "floor": floor, "machine": machine, **line}
        for (basis, floor, machine), saved in savings.groupby(["basis", "floor", "machine"])
        for line in _judged(board, saved, names, draws, permutations, seed)
    ]
    table = pd.DataFrame(lines)
    if len(table):
        table["p_value_after_holm"] = holm(table["p_value"])
        sure = (table["kendall_low"] > 0.0) & (table["p_value_after_holm"] <= LEVEL)
        table["claimed"] = np.where(
            table["bases"] < BASES_NEEDED, "too few models", np.where(sure, "yes", "no")
        )
    return table


def _judged(
    board: pd.DataFrame, saved: pd.DataFrame, names: Sequence[str], draws: int, permutations: int, seed: int
) -> Iterator[dict[str, Any]]:
    """A line for each score at one floor on one machine."""
    bases = np.array(sorted(saved["base"].unique()))
    transfers = list(_transfers(board, saved, names, bases))
    if not transfers:
        return
    generator, count = np.random.default_rng(seed), len(bases)
    drawn = generator.multinomial(count, np.full(count, 1.0 / count), size=draws)
    weights = np.concatenate([np.ones((1, count)), drawn])
    known = [np.isfinite(one.scores * one.savings).sum(axis=1) for one in transfers]
    fewest = np.min(known, axis=0)
    taus, rhos = (
        mean_of_defined(
            [
                np.where(enough >= POINTS_NEEDED, correlation(one.scores, one.savings, weights), np.nan)
                for one, enough in zip(transfers, known, strict=True)
            ]
        )
        for correlation in (kendall, spearman)
    )
    judged = np.flatnonzero((fewest >= BASES_NEEDED) & np.isfinite(taus[0]))
    p_values = np.full(len(names), np.nan)
    p_values[judged] = _p_values(transfers, judged, taus[0], generator, permutations)
    oracle = names.index(ORACLE)
    for place, name in enumerate(names):
        error, null_error = left_out_errors([(one.scores[place], one.savings) for one in transfers])
        few, beaten = fewest[place] < BASES_NEEDED, np.nan if place == oracle else taus[:, oracle]
        yield {
            "score": name,
            "bases": int(fewest[place]),
            "cells": min(int(one.cells[name].notna().sum()) for one in transfers),
            **_interval("kendall", taus[:, place], few=few),
            **_interval("spearman", rhos[:, place], few=few),
            **_interval("less_than_oracle", taus[:, place] - beaten, few=few),
            "error_share_of_time": error,
            "null_error_share_of_time": null_error,
            "within_base_kendall": _within_base(transfers, name),
            "p_value": p_values[place],
        }


def _transfers(
    board: pd.DataFrame, saved: pd.DataFrame, names: Sequence[str], bases: NDArray[Any]
) -> Iterator[Transfer]:
    for scored, other in itertools.permutations(sorted(board["workload"].unique()), 2):
        on_other = saved.loc[saved["workload"] == other, ["shown", "heads", SAVED]]
        cells = board[board["workload"] == scored].merge(on_other, on=["shown", "heads"])
        if len(cells):
            values, member = (
                cells[[*names, SAVED]].to_numpy(float).T,
                cells["base"].to_numpy()[:, None] == bases,
            )
            known = np.isfinite(values).astype(float)
            means = _ratio(np.where(known, values, 0.0) @ member, known @ member)
            yield Transfer(cells, means[:-1], means[-1])


def kendall(scores: Values, savings: Values, weights: Values) -> Values:
    """Kendall's tau-b (Kendall 1945) of each score with the savings: float64 [draws, scores].

    scores: [scores, points]; savings: [points]; weights: [draws, points], how often each point is drawn. A
    point drawn twice is tied with itself, and so counts in no pair with itself. NaN where all are tied.
    """
    above, below = np.triu_indices(len(savings), k=1)
    one, other = _signs(scores), _signs(savings)
    known = np.isfinite(one * other)
    one, other = (np.where(known, signs, 0.0) for signs in (one, other))
    drawn = weights[:, above] * weights[:, below]
    untied = (drawn @ np.abs(one).T) * (drawn @ np.abs(other).T)
    return _ratio(drawn @ (one * other).T, np.sqrt(untied))


def kendall_permuted(scores: Values, savings: Values) -> Values:
    """Tau-b of each score, [scores, points], with each order of the savings, [draws, points]."""
    one, other = _signs(scores), _signs(savings)
    known, known_too = (np.isfinite(signs).astype(float) for signs in (one, other))
    one, other = np.nan_to_num(one), np.nan_to_num(other)
    untied = (known_too @ np.abs(one).T) * (np.abs(other) @ known.T)
    return _ratio(other @ one.T, np.sqrt(untied))


def _signs(values: Values) -> Values:
    """The sign of each pair's difference: [..., points] -> [..., pairs]; NaN where a point has no value."""
    above, below = np.triu_indices(values.shape[-1], k=1)
    return np.asarray(np.sign(values[..., above] - values[..., below]))


def spearman(scores: Values, savings: Values, weights: Values) -> Values:
    """Spearman's rho: Pearson's correlation of ranks, ties averaged. Shapes and NaN as in `kendall`."""
    found = []
    for score in scores:
        known = np.isfinite(score * savings)
        drawn = weights[:, known]
        one, other = (_centred_ranks(values[known], drawn) for values in (score, savings))
        spread = (drawn * one * one).sum(axis=1) * (drawn * other * other).sum(axis=1)
        spread = np.where(spread < 1e-9, 0.0, spread)  # equal ranks less their mean leave rounding errors
        found.append(_ratio((drawn * one * other).sum(axis=1), np.sqrt(spread)))
    return np.stack(found, axis=1)


def _centred_ranks(values: Values, weights: Values) -> Values:
    """Rank of each point among the drawn ones, ties averaged, less their mean: [draws, points]."""
    below = (values[:, None] > values[None, :]) + 0.5 * (values[:, None] == values[None, :])
    ranks = weights @ below.T
    total = np.maximum(weights.sum(axis=1, keepdims=True), 1.0)  # a draw may hold none of these points
    return np.asarray(ranks - (weights * ranks).sum(axis=1, keepdims=True) / total)


def _ratio(above: Values, below: Values) -> Values:
    return np.asarray(np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0.0))


def mean_of_defined(values: Sequence[Values]) -> Values:
    """Mean over the pairs of texts where it is defined; NaN where it is in none."""
    known = np.isfinite(values)
    return _ratio(np.where(known, values, 0.0).sum(axis=0), known.sum(axis=0).astype(float))


def _p_values(
    transfers: Sequence[Transfer],
    judged: NDArray[np.int64],
    observed: Values,
    generator: np.random.Generator,
    permutations: int,
) -> Values:
    """(1 + permutations that reach the observed mean) / (1 + permutations), one-sided, of the judged scores.

    A permutation moves the savings of a whole base, on all texts together, to another base's scores (Davison
    and Hinkley 1997, section 4.3).
    """
    count, reached = len(transfers[0].savings), np.zeros(len(judged))
    at_once = max(1, AT_ONCE // (count * count))
    for start in range(0, permutations if len(judged) else 0, at_once):
        rows = np.tile(np.arange(count), (min(at_once, permutations - start), 1))
        orders = generator.permuted(rows, axis=1)
        taus = [kendall_permuted(one.scores[judged], one.savings[orders]) for one in transfers]
        reached += np.count_nonzero(mean_of_defined(taus) >= observed[judged] - 1e-9, axis=0)
    return np.asarray((1 + reached) / (1 + permutations))


def _interval(name: str, values: Values, *, few: bool) -> dict[str, float]:
    """The figure in row 0 with the interval of its draws, [1 + draws], as columns; none of few models."""
    defined = values[1:][np.isfinite(values[1:])]
    known = not few and np.isfinite(values[0])
    known = known and 1.0 - len(defined) / len(values[1:]) <= UNDEFINED_DRAWS_ALLOWED
    low, high = np.percentile(defined, [2.5, 97.5]) if known else (np.nan, np.nan)
    return {name: float(values[0]), f"{name}_low": float(low), f"{name}_high": float(high)}


def left_out_errors(pairs: Sequence[tuple[Values, Values]]) -> tuple[float, float]:
    """Median absolute error of a saving told from the score by the other models' line, and by their median.

    pairs: scores (higher = more suitable) and savings, [bases], NaN for none. NaN for too few.
    """
    errors, null_errors = [np.nan], [np.nan]
    for scores, savings in pairs:
        known = np.isfinite(scores * savings)
        own, saved = scores[known], savings[known]
        for place in range(len(own) if len(own) >= POINTS_NEEDED else 0):
            others = np.arange(len(own)) != place
            slope, intercept = fit_line(own[others], saved[others])
            errors.append(abs(intercept + slope * own[place] - saved[place]))
            null_errors.append(abs(np.median(saved[others]) - saved[place]))
    return float(pd.Series(errors).median()), float(pd.Series(null_errors).median())


def _within_base(transfers: Sequence[Transfer], name: str) -> float:
    """Mean of Kendall over the cells of one base, over bases with three cells and pairs of texts."""
    taus = [
        kendall(own[[name]].to_numpy(float).T, own[SAVED].to_numpy(float), np.ones((1, len(own))))[0, 0]
        for one in transfers
        for _, own in one.cells.dropna(subset=[name, SAVED]).groupby("base")
        if len(own) >= POINTS_NEEDED
    ]
    return float(pd.Series(taus, dtype=float).mean())


def main() -> tuple[pd.DataFrame, Path | None]:
    """The table of a comparison's tables."""
    asked = tables_parser(__doc__).parse_args()
    return validity(*(read_table(asked.tables, name) for name in ("leaderboard", "savings"))), asked.output


if __name__ == "__main__":
    run(main)
