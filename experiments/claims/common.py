"""What the scripts share: a comparison's tables, figures that may be undefined, lines, and Holm's adjustment."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from offramp import InputError, OfframpError

Values = NDArray[np.float64]

ORACLE = "saturation_skip"
"""The score to beat: it looks at exactly what early exit could keep."""
SCORES = (ORACLE, "block_influence", "calibration", "composite", "eas_centred_logit", "eas_hidden", "eas_logit",
          "first_match_skip", "increment", "literal_calibration", "mean_kl", "representation")  # fmt: skip
"""Columns of the leaderboard that might tell what is saved."""
LOWER_IS_BETTER = frozenset({"mean_kl", "block_influence"})
BASES_NEEDED = 12
"""Independently trained models below which nothing is claimed."""
LEVEL = 0.05
"""Chance of any false claim in a table."""


@dataclass(frozen=True)
class Figure:
    """A value with a 95 % interval; why: it is undefined, or has no interval."""

    value: float | None
    low: float | None = None
    high: float | None = None
    why: str = ""

    def columns(self, name: str) -> dict[str, float | None]:
        """As three columns of a table."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


def read_table(folder: Path, name: str) -> pd.DataFrame:
    """A table that `offramp compare` wrote, with the models' shown names ("smollm2 + int8") in `shown`.

    Raises InputError if it is not there.
    """
    path = folder / f"{name}.parquet"
    if not path.is_file():
        raise InputError(
            f"there is no table {name} of this offramp",
            where=str(folder),
            fix="give tables/ of offramp compare",
        )
    table = pd.read_parquet(path).rename(columns={"mean_kl_nats": "mean_kl"})
    return table.assign(
        shown=table["model"] + table["transform"].map(lambda name: f" + {name}" if name else "")
    )


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment (Holm 1979), in the order given; None stays None and does not count.

    The i-th smallest of m p-values becomes the largest of p_(j) (m - j + 1) over j <= i, at most 1.
    """
    known = pd.Series(p_values, dtype=float).dropna().sort_values(kind="stable")
    stepped = (known * np.arange(len(known), 0, -1)).cummax().clip(upper=1.0)
    return [float(stepped[place]) if place in stepped.index else None for place in range(len(p_values))]


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


def independent(bases: int) -> str:
    """So many models, in words."""
    return f"{bases} independently trained {'model' if bases == 1 else 'models'}"


def parser(description: str | None, source: str = "tables") -> argparse.ArgumentParser:
    """A script's options. source: the argument that it reads."""
    options = argparse.ArgumentParser(description=(description or "").partition("\n")[0])
    if source == "tables":
        options.add_argument("tables", type=Path, help="tables/ of offramp compare or offramp study report")
    options.add_argument("-o", "--output", type=Path, help="also write the table, as CSV")
    return options


def show(table: pd.DataFrame, sentences: Sequence[str], output: Path | None) -> None:
    """Print what is claimed, or the table where nothing says more, and write it where asked."""
    print("\n".join(sentences) if sentences else "Nothing to tell: the tables hold too little.")
    if output is not None:
        table.to_csv(output, index=False)


def run(main: Callable[[], Any]) -> None:
    """Run a script; an error of offramp ends it with exit code 2 and without a traceback."""
    try:
        main()
    except OfframpError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from error
