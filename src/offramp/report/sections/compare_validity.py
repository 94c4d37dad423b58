"""Whether a score predicts what is really saved: the predictive-validity table, with what it claims."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from offramp.report.comparison_words import (
    figure_name,
    floor_order,
    floor_shown,
    machine_shown,
)
from offramp.report.data_table import (
    DataCell,
    DataColumn,
    DataTable,
    estimate_cell,
    facet_cell,
    number_cell,
    reasons,
)
from offramp.report.formats import counted, decimal, percent
from offramp.report.html import fragment, stack, text
from offramp.report.sections.compare_pairs import SURE, probability
from offramp.studies.comparison.results import Comparison, ScoreValidity
from offramp.studies.comparison.validity import ORACLE
from offramp.tuning.from_scores import BASES_NEEDED

COLUMNS = (
    DataColumn("score", "Score"),
    DataColumn("basis", "Savings", facet="basis"),
    DataColumn("machine", "Machine", facet="machine"),
    DataColumn("floor", "Floor", facet="floor"),
    DataColumn("kendall", "Kendall τ-b", numeric=True),
    DataColumn("adjusted", "p, adjusted", numeric=True),
    DataColumn("spearman", "Spearman ρ", numeric=True),
    DataColumn("oracle", "Less the oracle's τ", numeric=True),
    DataColumn("error", "Error, model left out", numeric=True),
    DataColumn("null", "Error of guessing the median", numeric=True),
    DataColumn("within", "τ within one base", numeric=True),
    DataColumn("bases", "Independent models", numeric=True),
    DataColumn("cells", "Cells", numeric=True),
)


def validity_section(comparison: Comparison) -> Markup:
    """The claims, what the columns mean, and the table; nothing without one."""
    found = comparison.validity
    if not found:
        return Markup()
    ranked = sorted(
        found,
        key=lambda one: (one.basis, one.machine, floor_order(one.floor), -(one.kendall.value or -2.0)),
    )
    caption = "Each score on one workload against the savings on another workload of the same model"
    estimates = [estimate for one in found for estimate in (one.kendall, one.spearman, one.less_than_oracle)]
    scores = DataTable("validity", caption, COLUMNS, [_row(one) for one in ranked]).html()
    return fragment("comparison", "validity", claims(found), BASES_NEEDED, scores, reasons(estimates))


def claims(found: Sequence[ScoreValidity]) -> list[str]:
    """What is claimed, a sentence each, then of how many scores nothing is, and why if it is one reason."""
    lines = []
    for basis in dict.fromkeys(one.basis for one in found):
        here = [one for one in found if one.basis == basis]
        sure = [one for one in here if claims_something(one)]
        lines += [f"{_what(one)}: {one.claim.removeprefix(one.score).strip().rstrip('.')}." for one in sure]
        silent = [one.claim for one in here if not claims_something(one)]
        if silent:
            reason = silent[0].partition(": ")[2] if len(set(silent)) == 1 else ""
            of = f" of {len(silent)} of {counted(len(here), 'line')} of the table" if sure else ""
            why = f": {reason.rstrip('.')}" if reason else ""
            lines.append(f"Nothing is claimed{of} against {basis} savings{why}.")
    return lines


def claims_something(one: ScoreValidity) -> bool:
    """Whether there are models enough and the order is surely no chance, among all that were looked at."""
    low = one.kendall.low
    chance = one.adjusted is not None and one.adjusted > SURE
    return one.bases >= BASES_NEEDED and low is not None and low > 0 and not chance


def _what(one: ScoreValidity) -> str:
    place = f"{floor_shown(one.floor)}, {machine_shown(one.machine)}"
    return f"{figure_name(one.score)} against {one.basis} savings ({place})"


def _row(one: ScoreValidity) -> list[DataCell]:
    return [
        DataCell(stack(figure_name(one.score), "the one to beat" if one.score == ORACLE else "")),
        facet_cell(one.basis),
        facet_cell(machine_shown(one.machine)),
        facet_cell(floor_shown(one.floor)),
        estimate_cell(one.kendall, decimal),
        DataCell(text(probability(one.adjusted)), one.adjusted),
        estimate_cell(one.spearman, decimal),
        estimate_cell(one.less_than_oracle, decimal),
        number_cell(one.error, percent),
        number_cell(one.null_error, percent),
        number_cell(one.within_base, decimal),
        number_cell(one.bases, lambda value: decimal(value, 0)),
        number_cell(one.cells, lambda value: decimal(value, 0)),
    ]
