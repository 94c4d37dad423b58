"""What a comparison found, for predicting other models' savings from their scores (`offramp predict`)."""

from __future__ import annotations

import math

from offramp.studies.comparison.results import Comparison
from offramp.studies.comparison.savings import floor_and_machine, share_saved
from offramp.tuning.from_scores import ScoreCell


def score_cells(comparison: Comparison) -> tuple[ScoreCell, ...]:
    """A cell for each row, floor and machine: its scores, and what the league's choice saved there.

    The model of a cell is named with its workload, and its heads if it has any.
    """
    found = []
    for row in comparison.rows:
        name = " · ".join(part for part in (row.model.shown, row.workload, row.heads) if part)
        scores = {key: value for key, value in row.candidates.items() if value is not None}
        known = {key: value for key, value in scores.items() if math.isfinite(value)}
        for place, speedup in row.exit_speedup.items():
            cell = ScoreCell(name, row.model.base, known, share_saved(speedup), *floor_and_machine(place))
            found.append(cell)
    return tuple(found)
