"""Made-up tables of a comparison, for tests: as `offramp compare` writes and `read_table` reads them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from common import SAVED, SCORES

FLOOR, MACHINE = "agreement=0.95", "h100"
FACTS = ("family", "generation", "released", "parameters", "stage")


@dataclass(frozen=True)
class Line:
    """A model on a text. saved: share of time by basis, at the one floor on the one machine."""

    model: str
    workload: str = "prose"
    base: str = ""
    transform: str = ""
    heads: str = ""
    scores: Mapping[str, float] = field(default_factory=dict)
    saved: Mapping[str, float] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def tables_of(lines: list[Line]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The leaderboard and the savings of some models."""
    where = ["model", "transform", "workload", "heads", "base", "shown"]
    board, savings = [], []
    for line in lines:
        shown = f"{line.model} + {line.transform}" if line.transform else line.model
        values = (line.model, line.transform, line.workload, line.heads, line.base or line.model, shown)
        named = dict(zip(where, values, strict=True))
        board.append(
            {
                **named,
                **{name: line.scores.get(name, np.nan) for name in SCORES},
                **{name: line.facts.get(name) for name in FACTS},
            }
        )
        for basis, share in line.saved.items():
            savings.append({**named, "floor": FLOOR, "machine": MACHINE, "basis": basis, SAVED: share})
    leaderboard = pd.DataFrame(board).astype({"generation": float, "parameters": float})
    return leaderboard, pd.DataFrame(savings, columns=[*where, "floor", "machine", "basis", SAVED])
