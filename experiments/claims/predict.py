"""A model's saving from its score alone, by a line through other models whose saving is known."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd

from common import BASES_NEEDED, LOWER_IS_BETTER, SAVED, SCORES, fit_line, read_table, run, tables_parser
from offramp import InputError


def predict(cells: pd.DataFrame, score: str, value: float, level: float = 0.9) -> dict[str, Any]:
    """The share of time that early exit would save on a model of which only one score is known.

    cells: of other models at one floor on one machine, with `base`, the score and the saving. low, high: at
    least `level` of models drawn like the bases fall between them; without_score_low, -_high: if the score is
    ignored. outside: whether the value lies beyond the cells', so that the line is carried on.

    A Theil-Sen line is fitted without each base in turn, which is then judged by the largest of its cells'
    errors: models of one base are not independent. With q the ceil(level (n + 1))-th smallest of these n
    errors and m_b(x) the lines at the new score, the interval is [min m_b(x) - q, max m_b(x) + q]: the
    jackknife-minmax of Barber, Candes, Ramdas and Tibshirani (arXiv 1905.02928, section 2), which holds at
    least `level` of new models if the bases and the new model are exchangeable. No saving exceeds 1.

    Raises InputError with fewer than 12 bases or too few for the level, a value that is not finite, or a
    level outside (0, 1).
    """
    if not 0.0 < level < 1.0:
        raise InputError(f"a level of {level} is no share", fix="choose a number such as 0.9")
    if not math.isfinite(value):
        raise InputError(f"the model's {score} is {value}", fix="choose another score, or trace more text")
    known = cells.dropna(subset=[score])
    bases, needed = known["base"].nunique(), max(BASES_NEEDED, math.ceil(level / (1.0 - level) - 1e-9))
    if bases < needed:
        raise InputError(
            f"not predictable: {bases} independently trained models, {needed} needed",
            fix="measure more base models; variants of one base count once",
        )
    rank, sign = math.ceil(level * (bases + 1) - 1e-9), -1.0 if score in LOWER_IS_BETTER else 1.0
    low, high = _interval(known, score, value, rank, sign)
    without_low, without_high = _interval(known, score, value, rank, 0.0)
    slope, intercept = fit_line(known[score].to_numpy(float), known[SAVED].to_numpy(float), sign)
    return {
        "saving": min(intercept + slope * value, 1.0),
        "low": low,
        "high": high,
        "without_score_low": without_low,
        "without_score_high": without_high,
        "bases": bases,
        "cells": len(known),
        "outside": not known[score].min() <= value <= known[score].max(),
    }


def _interval(cells: pd.DataFrame, score: str, value: float, rank: int, sign: float) -> tuple[float, float]:
    """Limits of the jackknife-minmax, one base left out at a time; rank: of the error kept, from 1."""
    errors, ends = [], []
    for base, own in cells.groupby("base"):
        others = cells[cells["base"] != base]
        slope, intercept = fit_line(others[score].to_numpy(float), others[SAVED].to_numpy(float), sign)
        errors.append(float((own[SAVED] - (intercept + slope * own[score])).abs().max()))
        ends.append(intercept + slope * value)
    kept = sorted(errors)[rank - 1]
    return min(min(ends) - kept, 1.0), min(max(ends) + kept, 1.0)


def cells_of(tables: Path, floor: str | None, machine: str | None) -> pd.DataFrame:
    """Scores and predicted savings of a comparison at one floor on one machine.

    Raises InputError for cells of several floors or machines of which none is chosen.
    """
    savings, where = read_table(tables, "savings"), ["shown", "workload", "heads"]
    board = read_table(tables, "leaderboard")[[*where, *SCORES]]
    cells = savings[savings["basis"] == "predicted"].merge(board, on=where)
    for column, wanted in (("floor", floor), ("machine", machine)):
        known = sorted(cells[column].unique())
        if wanted not in known and (wanted is not None or len(known) != 1):
            raise InputError(
                f"the cells' {column}s are: {', '.join(known)}", fix=f"choose one with --{column}"
            )
        cells = cells[cells[column] == (wanted or known[0])]
    return cells


def main() -> tuple[pd.DataFrame, Path | None]:
    """The prediction for one value of a score."""
    options = tables_parser(__doc__)
    options.add_argument("value", type=float, help="of the model's score, as offramp score prints it")
    options.add_argument("--score", default="composite", choices=SCORES)
    options.add_argument(
        "--level", type=float, default=0.9, help="share of models that the interval must hold"
    )
    options.add_argument("--floor", help="agreement=0.95, where the tables have several")
    options.add_argument("--machine", help="h100, where the tables have several")
    asked = options.parse_args()
    cells = cells_of(asked.tables, asked.floor, asked.machine)
    return pd.DataFrame([predict(cells, asked.score, asked.value, asked.level)]), asked.output


if __name__ == "__main__":
    run(main)
