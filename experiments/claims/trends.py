"""How figures move with generation, release and size: Theil-Sen slopes over independently trained models."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from common import COMPONENTS, LEVEL, SAVED, Values, holm, read_table, run, tables_parser

MODELS_NEEDED = 4
"""Models below which a slope has no interval."""
ENUMERATED = 7
"""Up to so many models with ties, every order is counted instead of approximated."""
PROPERTIES = ("generation", "released", "log10 parameters")
"""What a figure may move with; a generation counts within a family, a release in years."""


def trends(leaderboard: pd.DataFrame, savings: pd.DataFrame) -> pd.DataFrame:
    """Every trend with at least two values of the property, p-values adjusted over all of them (Holm).

    One point for each base: its untransformed model, the one that is called like the base, or of stage
    "base", before others. Figures are scores, and what the ranking's choice saves by replay.
    """
    table = pd.DataFrame(_slopes(_points(leaderboard, savings)))
    if len(table):
        table["p_value_after_holm"] = holm(table["p_value"])
        holds = (table["slope_low"] > 0.0) | (table["slope_high"] < 0.0)
        sure = np.where(holds & (table["p_value_after_holm"] <= LEVEL), "yes", "no")
        table["claimed"] = np.where(table["models"] < MODELS_NEEDED, "too few models", sure)
    return table


def _points(leaderboard: pd.DataFrame, savings: pd.DataFrame) -> pd.DataFrame:
    """One line for each base, text and heads, with the properties and a column for each figure."""
    saved = savings[savings["basis"] == "predicted"]
    places, where = "saving, " + saved["floor"] + " | " + saved["machine"], ["shown", "workload", "heads"]
    wide = saved.assign(place=places).pivot(index=where, columns="place", values=SAVED)
    board = leaderboard[leaderboard["transform"] == ""].merge(wide.reset_index(), how="left", on=where)
    month = pd.to_datetime(board["released"], format="%Y-%m").dt
    board = board.assign(
        **{
            "log10 parameters": np.log10(board["parameters"]),
            "released": month.year + (month.month - 1) / 12,
            "other": board["model"] != board["base"],
            "tuned": board["stage"] != "base",
        }
    )
    best_first = board.sort_values(["workload", "heads", "other", "tuned", "model"], kind="stable")
    return best_first.drop_duplicates(["workload", "heads", "base"])


def _slopes(points: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Every trend, not adjusted yet."""
    figures = [*COMPONENTS, *sorted(column for column in points if column.startswith("saving, "))]
    for (workload, heads), here in points.groupby(["workload", "heads"]):
        for against in PROPERTIES:
            families = (
                here.dropna(subset="family").groupby("family") if against == "generation" else [("", here)]
            )
            for (family, members), figure in itertools.product(families, figures):
                known = members.sort_values("shown").dropna(subset=[against, figure])
                x, y = (known[column].to_numpy(float) for column in (against, figure))
                if len(set(x)) > 1:
                    where = {"workload": workload, "heads": heads, "figure": figure, "against": against}
                    yield {**where, "family": family, "models": len(x), **theil_sen(x, y)}


def theil_sen(x: Values, y: Values) -> dict[str, float]:
    """Slope with its 95 % interval (Sen 1968), intercept, and two-sided p-value of Kendall's statistic.

    x, y: float64 [models], x with two values at least. Below 4 models: neither interval nor p-value.
    """
    found, enough = stats.theilslopes(y, x, alpha=0.95), len(x) >= MODELS_NEEDED
    return {
        "slope": float(found.slope),
        "slope_low": float(found.low_slope) if enough else np.nan,
        "slope_high": float(found.high_slope) if enough else np.nan,
        "intercept": float(found.intercept),
        "p_value": kendall_p_value(x, y) if enough else np.nan,
    }


def kendall_p_value(x: Values, y: Values) -> float:
    """Two-sided p-value that x and y are unrelated, by Kendall's statistic; 1 where one of them is constant.

    Exact without ties and with up to 7 models, else by the normal approximation (Kendall 1970, chapter 4).
    """
    if len(set(x)) == 1 or len(set(y)) == 1:
        return 1.0
    tied = len(set(x)) < len(x) or len(set(y)) < len(y)
    if not tied or len(x) > ENUMERATED:
        return float(stats.kendalltau(x, y).pvalue)
    signs, other = (np.sign(values[:, None] - values[None, :]) for values in (x, y))
    orders = np.array(list(itertools.permutations(range(len(x)))))
    statistics = np.abs((other[orders[:, :, None], orders[:, None, :]] * signs).sum(axis=(1, 2)))
    return float(np.mean(statistics >= np.abs((signs * other).sum())))


def main() -> tuple[pd.DataFrame, Path | None]:
    """The trends of a comparison's tables."""
    asked = tables_parser(__doc__).parse_args()
    return trends(*(read_table(asked.tables, name) for name in ("leaderboard", "savings"))), asked.output


if __name__ == "__main__":
    run(main)
