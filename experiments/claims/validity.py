"""Whether a score on one text tells what is saved on another: rank correlations, p-values, left-out errors.

The score on workload A stands against the saving on workload B of the same cells, cells of one base averaged,
for every ordered pair A != B; a figure is the mean over these pairs.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from common import (
    BASES_NEEDED,
    LEVEL,
    LOWER_IS_BETTER,
    ORACLE,
    SCORES,
    Figure,
    Values,
    fit_line,
    holm,
    independent,
    parser,
    read_table,
    run,
    show,
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

    cells: a line each, with `base`, every score (signed: more is better) and `saving`. scores: float64
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

    draws: of whole bases with replacement, for the intervals (percentile bootstrap, Efron 1979).
    permutations: of the savings of whole bases, for the one-sided p-values, which are adjusted over the table
    (Holm). Both from 12 bases on.
    """
    names = [name for name in SCORES if name in leaderboard]
    board = leaderboard.copy()
    board[[name for name in names if name in LOWER_IS_BETTER]] *= -1.0
    lines: list[dict[str, Any]] = []
    for basis in ("predicted", "measured"):
        here = savings[savings["basis"] == basis]
        places = here[["floor", "machine"]].drop_duplicates().agg(" | ".join, axis=1)
        for _, (floor, machine) in here.loc[places.sort_values().index, ["floor", "machine"]].iterrows():
            saved = here[(here["floor"] == floor) & (here["machine"] == machine)]
            where = {"basis": basis, "floor": floor, "machine": machine}
            lines += [where | line for line in _judged(board, saved, names, draws, permutations, seed)]
    for line, adjusted in zip(lines, holm([line["p_value"] for line in lines]), strict=True):
        line |= {"p_value_after_holm": adjusted, "claim": claim(line | {"p_value_after_holm": adjusted})}
        for name in ("kendall", "spearman", "less_than_oracle"):
            line |= line[name].columns(name)
    return pd.DataFrame(lines)


def _judged(
    board: pd.DataFrame, saved: pd.DataFrame, names: Sequence[str], draws: int, permutations: int, seed: int
) -> Iterator[dict[str, Any]]:
    """A line for each score at one floor on one machine, nothing claimed yet."""
    bases = sorted(saved["base"].unique())
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
    p_values = dict(zip(judged, _p_values(transfers, judged, taus[0], generator, permutations), strict=True))
    for place, name in enumerate(names):
        bases_here = int(fewest[place])
        error, null_error = left_out_errors([(one.scores[place], one.savings) for one in transfers])
        over = Figure(None, why="the saturation oracle is not among the scores")
        if ORACLE in names:
            over = _figure(taus[:, place] - taus[:, names.index(ORACLE)], bases_here)
        yield {
            "score": name,
            "bases": bases_here,
            "cells": min(int(one.cells[name].notna().sum()) for one in transfers),
            "kendall": _figure(taus[:, place], bases_here),
            "spearman": _figure(rhos[:, place], bases_here),
            "less_than_oracle": Figure(None, why="it is the oracle") if name == ORACLE else over,
            "error_share_of_time": error,
            "null_error_share_of_time": null_error,
            "within_base_kendall": _within_base(transfers, name),
            "p_value": p_values.get(place),
        }


def _transfers(
    board: pd.DataFrame, saved: pd.DataFrame, names: Sequence[str], bases: Sequence[str]
) -> Iterator[Transfer]:
    saving = saved.rename(columns={"saved_share_of_time": "saving"})[["shown", "heads", "workload", "saving"]]
    for scored, other in itertools.permutations(sorted(board["workload"].unique()), 2):
        cells = board[board["workload"] == scored].merge(
            saving[saving["workload"] == other], on=["shown", "heads"], suffixes=("", "_saved")
        )
        if len(cells):
            means = cells.groupby("base")[[*names, "saving"]].mean().reindex(bases)
            yield Transfer(cells, means[list(names)].to_numpy(float).T, means["saving"].to_numpy(float))


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
    """Tau-b of each score with each permutation of the savings: [scores, points], [draws, points] as `kendall`."""
    one, other = _signs(scores), _signs(savings)
    (known, one), (known_too, other) = (
        (np.isfinite(signs).astype(float), np.nan_to_num(signs)) for signs in (one, other)
    )
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
    return np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0.0)


def mean_of_defined(values: Sequence[Values]) -> Values:
    """Mean over the pairs of texts where it is defined; NaN where it is in none."""
    known = np.isfinite(values)
    counts = known.sum(axis=0)
    return _ratio(np.where(known, values, 0.0).sum(axis=0), counts.astype(float))


def _p_values(
    transfers: Sequence[Transfer],
    judged: Any,
    observed: Values,
    generator: np.random.Generator,
    permutations: int,
) -> list[float]:
    """(1 + permutations that reach the observed mean) / (1 + permutations), one-sided, of the judged scores.

    A permutation moves the savings of a whole base, on all texts together, to another base's scores (Davison
    and Hinkley 1997, section 4.3).
    """
    count, reached = len(transfers[0].savings), np.zeros(len(judged))
    at_once = max(1, AT_ONCE // (count * count))
    for start in range(0, permutations if len(judged) else 0, at_once):
        part = min(at_once, permutations - start)
        orders = generator.permuted(np.tile(np.arange(count), (part, 1)), axis=1)
        taus = mean_of_defined(
            [kendall_permuted(one.scores[judged], one.savings[orders]) for one in transfers]
        )
        reached += np.count_nonzero(taus >= observed[judged] - 1e-9, axis=0)
    return [float((1 + times) / (1 + permutations)) for times in reached]


def _figure(values: Values, bases: int) -> Figure:
    """The figure in row 0 with the interval of its draws, [1 + draws]; an interval from 12 bases on."""
    if not np.isfinite(values[0]):
        few = f"{independent(bases)}; an order needs {POINTS_NEEDED}"
        return Figure(None, why=few if bases < POINTS_NEEDED else "all savings or all scores are equal")
    value = float(values[0])
    if bases < BASES_NEEDED:
        return Figure(value, why=f"{independent(bases)}; an interval needs {BASES_NEEDED}")
    defined = values[1:][np.isfinite(values[1:])]
    undefined = 1.0 - len(defined) / len(values[1:])
    if undefined > UNDEFINED_DRAWS_ALLOWED:
        return Figure(value, why=f"undefined in {undefined:.0%} of the resampled sets of models")
    low, high = np.percentile(defined, [2.5, 97.5])
    return Figure(value, float(low), float(high))


def left_out_errors(pairs: Sequence[tuple[Values, Values]]) -> tuple[float | None, float | None]:
    """Median absolute error of a saving told from the score by the other models' line, and by their median.

    pairs: scores (higher = more suitable) and savings, [bases], NaN for none. None for too few.
    """
    errors, null_errors = [], []
    for scores, savings in pairs:
        known = np.isfinite(scores * savings)
        own, saved = scores[known], savings[known]
        for place in range(len(own) if len(own) >= POINTS_NEEDED else 0):
            others = np.arange(len(own)) != place
            slope, intercept = fit_line(own[others], saved[others])
            errors.append(abs(intercept + slope * own[place] - saved[place]))
            null_errors.append(abs(np.median(saved[others]) - saved[place]))
    return (float(np.median(errors)), float(np.median(null_errors))) if errors else (None, None)


def _within_base(transfers: Sequence[Transfer], name: str) -> float | None:
    """Mean of Kendall over the cells of one base, over bases with three cells and pairs of texts."""
    found = [
        kendall(own[[name]].to_numpy(float).T, own["saving"].to_numpy(float), np.ones((1, len(own))))[0, 0]
        for one in transfers
        for _, own in one.cells.dropna(subset=[name, "saving"]).groupby("base")
        if len(own) >= POINTS_NEEDED
    ]
    return float(np.nanmean(found)) if np.isfinite(found).any() else None


def claim(line: Mapping[str, Any]) -> str:
    """The sentence to print: what the table claims of a score, or why it claims nothing."""
    tau, adjusted = line["kendall"], line["p_value_after_holm"]
    if line["bases"] < BASES_NEEDED:
        return f"claims nothing: {independent(line['bases'])}, {BASES_NEEDED} needed"
    if tau.low is None or adjusted is None:
        return f"claims nothing: {tau.why}"
    figures = f"Kendall {tau.value:.2f} ({tau.low:.2f} to {tau.high:.2f}), p = {adjusted:.2g} after Holm"
    if tau.low <= 0.0 or adjusted > LEVEL:
        return f"claims nothing: {figures}, {independent(line['bases'])}"
    over, error, null_error = (line[name] for name in ("less_than_oracle", *ERRORS))
    beside = "not surely better than the saturation oracle"
    if over.low is None:
        beside = "the saturation oracle is the one to beat"
    elif over.low > 0.0:
        beside = "better than the saturation oracle (not adjusted for the number of scores)"
    elif over.high < 0.0:
        beside = "worse than the saturation oracle"
    size = "; how much is saved it tells no better than the median of other models"
    said = f"ranks models by what is saved on another workload: {figures}, {independent(line['bases'])}; {beside}"
    return said + (size if error is not None and error >= null_error else "")


ERRORS = ("error_share_of_time", "null_error_share_of_time")


def main() -> None:
    """Read the tables, judge, print the claims."""
    asked = parser(__doc__).parse_args()
    table = validity(read_table(asked.tables, "leaderboard"), read_table(asked.tables, "savings"))
    said = [
        f"{line.score} against {line.basis} savings ({line.floor}, {line.machine}): {line.claim}."
        for line in table.itertuples()
    ]
    show(table, said, asked.output)


if __name__ == "__main__":
    run(main)
