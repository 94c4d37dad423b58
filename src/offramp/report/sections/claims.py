"""Each score beside the measured saving: its rank correlation, or that models are too few."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from offramp.report.data_table import (
    DataCell,
    DataColumn,
    DataTable,
    estimate_cell,
    facet_cell,
    number_cell,
    reasons,
)
from offramp.report.formats import counted, decimal
from offramp.report.html import fragment, text
from offramp.report.names import figure_name, floor_order, floor_shown, machine_shown
from offramp.scoring.rank_correlation import BASES_NEEDED
from offramp.studies.comparison.results import Comparison, ScoreValidity
from offramp.studies.comparison.validity import independent

VALIDITY_COLUMNS = (
    DataColumn("score", "Score"),
    DataColumn("machine", "Machine", facet="machine"),
    DataColumn("floor", "Floor", facet="floor"),
    DataColumn("kendall", "Kendall τ-b", numeric=True),
    DataColumn("bases", "Independent models", numeric=True),
)


def validity_section(comparison: Comparison) -> Markup:
    """What can be said, and a row for each score at a floor on a machine; nothing without a measurement."""
    found = comparison.validity
    if not found:
        return Markup()
    ranked = sorted(
        found, key=lambda entry: (entry.machine, floor_order(entry.floor), -(entry.kendall.value or -2.0))
    )
    caption = "Each score on one text against the measured savings on another text of the same model"
    scores = DataTable("validity", caption, VALIDITY_COLUMNS, [_row(entry) for entry in ranked]).html()
    notes = reasons([entry.kendall for entry in found])
    return fragment("comparison", "validity", validity_words(found), scores, notes)


def validity_words(found: Sequence[ScoreValidity]) -> list[str]:
    """One sentence: that models are too few, or how many correlations are surely above chance."""
    if not found:
        return []
    bases = max(entry.bases for entry in found)
    if bases < BASES_NEEDED:
        return [
            f"Which score tells what is saved cannot be told: {independent(bases)} were measured, "
            f"{BASES_NEEDED} are needed."
        ]
    above = sum(entry.kendall.low is not None and entry.kendall.low > 0 for entry in found)
    return [
        f"Of {counted(len(found), 'correlation')} of a score with measured savings, {above} "
        f"{'lies' if above == 1 else 'lie'} above 0 with the whole interval; that they are so many is not "
        "accounted for."
    ]


def _row(entry: ScoreValidity) -> list[DataCell]:
    return [
        DataCell(text(figure_name(entry.score))),
        facet_cell(machine_shown(entry.machine)),
        facet_cell(floor_shown(entry.floor)),
        estimate_cell(entry.kendall, decimal),
        number_cell(entry.bases, lambda value: decimal(value, 0)),
    ]
