"""What the scripts share: a comparison's tables, lines through points, and Holm's adjustment."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from offramp import InputError, OfframpError

Values = NDArray[np.float64]

ORACLE = "saturation_skip"
"""The score to beat: it looks at exactly what early exit could keep."""
COMPONENTS = ("composite", "representation", "increment", "calibration", "first_match_skip", ORACLE)
SCORES = (
    *(*COMPONENTS, "literal_calibration", "eas_logit", "eas_centred_logit", "eas_hidden"),
    *("mean_kl", "block_influence"),
)
"""Columns of the leaderboard that might tell what is saved."""
LOWER_IS_BETTER = ("mean_kl", "block_influence")
SAVED = "saved_share_of_time"
BASES_NEEDED = 12
"""Independently trained models below which nothing is claimed."""
LEVEL = 0.05
"""Chance of any false claim in a table."""


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """A table that `offramp compare` wrote, with the models' shown names ("smollm2 + int8") in `shown`.

    Raises InputError if it is not there.
    """
    path = folder / f"{name}.parquet"
    if not path.is_file():
        fix = "give the folder tables/ that offramp compare writes"
        raise InputError(f"there is no table {name} of this offramp", where=str(folder), fix=fix)
    table = pd.read_parquet(path).rename(columns={"mean_kl_nats": "mean_kl"})
    transforms = table["transform"].map(lambda name: f" + {name}" if name else "")
    return table.assign(shown=table["model"] + transforms)


def holm(p_values: pd.Series) -> pd.Series:
    """Holm's step-down adjustment (Holm 1979); what is undefined stays so and does not count.

    The i-th smallest of m p-values becomes the largest of p_(j) (m - j + 1) over j <= i, at most 1.
    """
    known = p_values.astype(float).dropna().sort_values(kind="stable")
    return (known * np.arange(len(known), 0, -1)).cummax().clip(upper=1.0).reindex(p_values.index)


def fit_line(scores: Values, savings: Values, sign: float = 1.0) -> tuple[float, float]:
    """Slope and intercept of the Theil-Sen line (Sen 1968): median slope of all pairs, then median intercept.

    sign: 1 if a higher score means more saving, -1 if less, 0 to ignore the score. A slope of the other sign
    becomes 0, as it is where all scores are equal.
    """
    first, second = np.triu_indices(len(scores), k=1)
    run, rise = scores[second] - scores[first], savings[second] - savings[first]
    slope = float(np.median(rise[run != 0.0] / run[run != 0.0])) if (run != 0.0).any() else 0.0
    slope = slope if slope * sign > 0.0 else 0.0
    return slope, float(np.median(savings - slope * scores))


def parser(description: str | None) -> argparse.ArgumentParser:
    """A script's options."""
    options = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    options.add_argument("-o", "--output", type=Path, help="also write the table, unrounded, as CSV")
    return options


def tables_parser(description: str | None) -> argparse.ArgumentParser:
    """The options of a script that reads a comparison's tables."""
    options = parser(description)
    options.add_argument("tables", type=Path, help="tables/ of offramp compare or offramp study report")
    return options


def run(main: Callable[[], tuple[pd.DataFrame, Path | None]]) -> None:
    """Print the table that a script makes, write it where asked; exit code 2 for an error of offramp's."""
    try:
        table, output = main()
    except OfframpError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
    print(table.to_string(index=False, float_format="{:.4g}".format, na_rep="-") if len(table) else "nothing")
    if output is not None:
        table.to_csv(output, index=False)
