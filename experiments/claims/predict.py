"""A model's saving from its score alone, by a line through other models whose saving is known."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from common import (
    BASES_NEEDED,
    LOWER_IS_BETTER,
    SCORES,
    Values,
    fit_line,
    independent,
    parser,
    read_table,
    run,
    show,
)

from offramp import InputError

SAVED = "saved_share_of_time"


@dataclass(frozen=True)
class Prediction:
    """saving: share of the full model's time, predicted. low, high: at least `level` of models drawn like the
    bases fall between them; without_score: likewise if the score is ignored. notes: to read beside them."""

    saving: float
    low: float
    high: float
    without_score: tuple[float, float]
    bases: int
    cells: int
    notes: tuple[str, ...]


def predict(cells: pd.DataFrame, score: str, value: float, level: float = 0.9) -> Prediction:
    """The share of time that early exit would save on a model of which only one score is known.

    cells: of other models at one floor on one machine, with `base`, the score and the saving. A Theil-Sen line
    is fitted without each base in turn, which is then judged by the largest of its cells' errors: models of
    one base are not independent. With q the ceil(level (n + 1))-th smallest of these n errors and m_b(x) the
    lines at the new score, the interval is [min m_b(x) - q, max m_b(x) + q]: the jackknife-minmax of Barber,
    Candes, Ramdas and Tibshirani (arXiv 1905.02928, section 2), which holds at least `level` of new models if
    the bases and the new model are exchangeable. No saving exceeds 1.

    Raises InputError with fewer than 12 bases or too few for the level, a value that is not finite, or a level
    outside (0, 1).
    """
    if not 0.0 < level < 1.0:
        raise InputError(
            f"a level of {level} is no share", fix="choose a number between 0 and 1, such as 0.9"
        )
    if not math.isfinite(value):
        raise InputError(f"the model's {score} is {value}", fix="choose another score, or trace more text")
    known = cells.dropna(subset=[score])
    bases = known["base"].nunique()
    needed = max(BASES_NEEDED, math.ceil(level / (1.0 - level) - 1e-9))
    if bases < needed:
        raise InputError(
            f"not predictable: {independent(bases)}, {needed} needed",
            fix="measure more base models; variants of one base count once",
        )
    rank, sign = math.ceil(level * (bases + 1) - 1e-9), -1.0 if score in LOWER_IS_BETTER else 1.0
    low, high = _interval(known, score, value, rank, sign)
    ignored = _interval(known, score, value, rank, 0.0)
    slope, intercept = fit_line(*_points(known, score), sign)
    notes = [
        "The interval takes the new model as one more draw from the same kind of models as the cells' bases."
    ]
    least, most = known[score].min(), known[score].max()
    if not least <= value <= most:
        notes.append(
            f"The score {value:.3g} lies outside those of the cells, {least:.3g} to {most:.3g}: the line is "
            "carried on beyond what was measured."
        )
    if high - low >= ignored[1] - ignored[0]:
        notes.append(f"The {score} says nothing here: ignoring it gives an interval that is no wider.")
    saving = min(intercept + slope * value, 1.0)
    return Prediction(saving, low, high, ignored, bases, len(known), tuple(notes))


def _interval(cells: pd.DataFrame, score: str, value: float, rank: int, sign: float) -> tuple[float, float]:
    """Limits of the jackknife-minmax, one base left out at a time; rank: of the error kept, from 1."""
    errors, ends = [], []
    for base, own in cells.groupby("base"):
        slope, intercept = fit_line(*_points(cells[cells["base"] != base], score), sign)
        errors.append(float((own[SAVED] - (intercept + slope * own[score])).abs().max()))
        ends.append(intercept + slope * value)
    kept = sorted(errors)[rank - 1]
    return min(min(ends) - kept, 1.0), min(max(ends) + kept, 1.0)


def _points(cells: pd.DataFrame, score: str) -> tuple[Values, Values]:
    return cells[score].to_numpy(float), cells[SAVED].to_numpy(float)


def cells_of(tables: Path, floor: str | None, machine: str | None) -> pd.DataFrame:
    """Scores and predicted savings of a comparison at one floor on one machine.

    Raises InputError for cells of several floors or machines of which none is chosen.
    """
    savings, where = read_table(tables, "savings"), ["shown", "workload", "heads"]
    cells = savings[savings["basis"] == "predicted"].merge(
        read_table(tables, "leaderboard")[[*where, *SCORES]], on=where
    )
    for column, wanted in (("floor", floor), ("machine", machine)):
        known = sorted(cells[column].unique())
        if (wanted is None and len(known) != 1) or (wanted is not None and wanted not in known):
            raise InputError(
                f"the cells are of {len(known)} {column}s: {', '.join(known)}",
                where=str(tables),
                fix=f"choose one with --{column}",
            )
        cells = cells[cells[column] == (wanted or known[0])]
    return cells


def main() -> None:
    """Read the tables, predict for one value of a score, print."""
    options = parser(__doc__)
    options.add_argument("value", type=float, help="of the model's score, as offramp score prints it")
    options.add_argument("--score", default="composite", choices=SCORES)
    options.add_argument(
        "--level", type=float, default=0.9, help="share of models that the interval must hold"
    )
    options.add_argument("--floor", help="agreement=0.95, where the tables have several")
    options.add_argument("--machine", help="h100, where the tables have several")
    asked = options.parse_args()
    cells = cells_of(asked.tables, asked.floor, asked.machine)
    found = predict(cells, asked.score, asked.value, asked.level)
    ignored = " to ".join(f"{limit:.1%}" for limit in found.without_score)
    said = [
        f"{asked.score} {asked.value:.3f} at {cells['floor'].iloc[0]} on {cells['machine'].iloc[0]}",
        f"  predicted saving of time: {found.saving:.1%}",
        f"  at least {asked.level:.0%} of such models: {found.low:.1%} to {found.high:.1%} (without the score: "
        f"{ignored})",
        f"  from {independent(found.bases)}, {found.cells} cells",
        *(f"note: {note}" for note in found.notes),
    ]
    show(cells, said, asked.output)


if __name__ == "__main__":
    run(main)
