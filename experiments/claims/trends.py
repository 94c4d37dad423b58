"""How figures move with generation, release and size: Theil-Sen slopes over independently trained models."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd
from common import LEVEL, Figure, Values, holm, independent, parser, read_table, run, show
from scipy import stats

MODELS_NEEDED = 4
"""Models below which a slope has no interval."""
ENUMERATED = 7
"""Up to so many models with ties, every order is counted instead of approximated."""
FIGURES = ("composite", "representation", "increment", "calibration", "first_match_skip", "saturation_skip")
UNITS = {"generation": "generation", "released": "year", "log10 parameters": "tenfold size"}
"""What a figure may move with, and the unit that its slope is per; a generation counts within a family."""


def trends(leaderboard: pd.DataFrame, savings: pd.DataFrame) -> pd.DataFrame:
    """Every trend with at least two values of the property, p-values adjusted over all of them (Holm).

    One point for each base: its untransformed model, the one that is called like the base, or of stage
    "base", before others. Figures are scores, and the share of time that the ranking's choice saves by replay.
    """
    lines = list(_slopes(_points(leaderboard, savings)))
    for line, adjusted in zip(lines, holm([line["p_value"] for line in lines]), strict=True):
        line |= {"p_value_after_holm": adjusted, "claim": claim(line | {"p_value_after_holm": adjusted})}
        line |= line["slope"].columns("slope")
    return pd.DataFrame(lines)


def _points(leaderboard: pd.DataFrame, savings: pd.DataFrame) -> pd.DataFrame:
    """One line for each base, text and heads, with the properties and a column for each figure."""
    saved = savings[savings["basis"] == "predicted"]
    places = "saving, " + saved["floor"] + " | " + saved["machine"]
    where = ["shown", "workload", "heads"]
    wide = saved.assign(place=places).pivot(index=where, columns="place", values="saved_share_of_time")
    board = leaderboard[leaderboard["transform"] == ""].merge(wide.reset_index(), how="left", on=where)
    board["log10 parameters"] = np.log10(board["parameters"])
    month = board["released"].astype("string").str.split("-", expand=True).reindex(columns=[0, 1])
    board["released"] = month[0].astype("Float64") + (month[1].fillna("1").astype("Float64") - 1) / 12
    standing = {"other": board["model"] != board["base"], "tuned": board["stage"] != "base"}
    board = board.assign(**standing).sort_values(
        ["workload", "heads", "other", "tuned", "model"], kind="stable"
    )
    return board.drop_duplicates(["workload", "heads", "base"])


def _slopes(points: pd.DataFrame) -> Iterator[dict[str, Any]]:
    """Every trend, nothing claimed yet."""
    figures = [*FIGURES, *sorted(column for column in points if column.startswith("saving, "))]
    for (workload, heads), here in points.groupby(["workload", "heads"]):
        for against in UNITS:
            families = (
                here.dropna(subset="family").groupby("family") if against == "generation" else [("", here)]
            )
            for (family, members), figure in itertools.product(families, figures):
                known = members.sort_values("shown").dropna(subset=[against, figure])
                x, y = (known[column].to_numpy(float) for column in (against, figure))
                if len(set(x)) > 1:
                    slope, intercept, p_value = theil_sen(x, y)
                    where = {"workload": workload, "heads": heads, "figure": figure, "against": against}
                    found = {"models": len(x), "slope": slope, "intercept": intercept, "p_value": p_value}
                    yield {**where, "family": family, **found}


def theil_sen(x: Values, y: Values) -> tuple[Figure, float, float | None]:
    """Slope with its 95 % interval (Sen 1968), intercept, and two-sided p-value of Kendall's statistic.

    x, y: float64 [models], x with two values at least. Below 4 models: neither interval nor p-value.
    """
    found = stats.theilslopes(y, x, alpha=0.95)
    if len(x) < MODELS_NEEDED:
        return Figure(float(found.slope)), float(found.intercept), None
    slope = Figure(float(found.slope), float(found.low_slope), float(found.high_slope))
    return slope, float(found.intercept), kendall_p_value(x, y)


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


def claim(line: Mapping[str, Any]) -> str:
    """One sentence: what is claimed of a trend, or why nothing is."""
    slope, models, adjusted = line["slope"], line["models"], line["p_value_after_holm"]
    if slope.low is None:
        return f"no trend is claimed: {independent(models)}, an interval needs {MODELS_NEEDED}"
    interval = f"{slope.low:.3g} to {slope.high:.3g}"
    if slope.low <= 0.0 <= slope.high:
        return f"no trend is claimed: the slope's interval, {interval}, holds 0 ({models} models)"
    chance = f"p = {adjusted:.2g} after Holm, {models} models"
    if adjusted > LEVEL:
        return f"no trend is claimed: among all trends of the table, one like this may be chance ({chance})"
    moves = f"{'rises' if slope.value > 0.0 else 'falls'} by {abs(slope.value):.3g}"
    return f"{line['figure']} {moves} per {UNITS[line['against']]} (slope {interval}, {chance})"


def main() -> None:
    """Read the tables, fit, print the claims."""
    asked = parser(__doc__).parse_args()
    table = trends(read_table(asked.tables, "leaderboard"), read_table(asked.tables, "savings"))
    said = [
        f"{line.figure} against {line.against}, {line.workload}{line.family and f', {line.family} only'}: "
        f"{line.claim}."
        for line in table.itertuples()
    ]
    show(table, said, asked.output)


if __name__ == "__main__":
    run(main)
