"""Each score beside the measured saving: its rank correlation, or that models are too few."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from offramp.report.formats import counted, decimal, whole
from offramp.report.html import fragment
from offramp.report.names import figure_name, floor_order
from offramp.report.places import FLOOR, MACHINE
from offramp.report.table import Cell, Column, Table, reasons
from offramp.scoring.estimate import Estimate
from offramp.scoring.rank_correlation import BASES_NEEDED
from offramp.studies.comparison.results import Comparison, ScoreValidity
from offramp.studies.comparison.validity import independent

VALIDITY: Table[ScoreValidity] = Table(
    (
        Column("Score", lambda entry: Cell(figure_name(entry.score), value=entry.score), data=str),
        MACHINE.over(lambda entry: entry.machine),
        FLOOR.over(lambda entry: entry.floor),
        Column("Kendall τ-b", lambda entry: entry.kendall, decimal, data=Estimate, key="kendall"),
        Column("Independent models", lambda entry: entry.bases, whole, data=int, key="bases"),
    ),
    caption="Each score on one text against the measured savings on another text of the same model",
    name="validity",
)


def validity_section(comparison: Comparison) -> Markup:
    """What can be said, and a row for each score at a floor on a machine; nothing without a measurement."""
    validity = comparison.validity
    if not validity:
        return Markup()
    ranked = sorted(
        validity, key=lambda entry: (entry.machine, floor_order(entry.floor), -(entry.kendall.value or -2.0))
    )
    notes = reasons([entry.kendall for entry in validity])
    return fragment("comparison", "validity", validity_words(validity), VALIDITY.html(ranked), notes)


def validity_words(validity: Sequence[ScoreValidity]) -> list[str]:
    """One sentence: that models are too few, or how many correlations are surely above chance."""
    if not validity:
        return []
    bases = max(entry.bases for entry in validity)
    if bases < BASES_NEEDED:
        return [
            f"Which score tells what is saved cannot be told: {independent(bases)} were measured, "
            f"{BASES_NEEDED} are needed."
        ]
    above = sum(entry.kendall.low is not None and entry.kendall.low > 0 for entry in validity)
    return [
        f"Of {counted(len(validity), 'correlation')} of a score with measured savings, {above} "
        f"{'lies' if above == 1 else 'lie'} above 0 with the whole interval; that they are so many is not "
        "accounted for."
    ]
