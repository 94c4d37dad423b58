"""The leaderboard of models: every score with its interval, and the best certified speed at each floor."""

from __future__ import annotations

from collections.abc import Sequence

from markupsafe import Markup

from offramp.report.data_table import (
    PLACE_COLUMNS,
    DataCell,
    DataColumn,
    DataTable,
    estimate_cell,
    facet_cell,
    number_cell,
    place_cells,
    reasons,
)
from offramp.report.formats import counted, listed
from offramp.report.html import fragment, stack, styled
from offramp.report.names import distinct, floor_shown, heads_name
from offramp.report.sections.dots import (
    NO_SAVING,
    SPEED,
    Figure,
    charts,
    exits_at,
    figures_of,
    floors_of,
    score,
    speed_at,
    without_speed,
)
from offramp.studies.comparison.results import Comparison, Row


def leaderboard_section(comparison: Comparison) -> Markup:
    """Charts of speed and components, the means over workloads, and every row."""
    rows = ordered(comparison.rows)
    if not rows:
        return Markup()
    figures = figures_of(rows)
    notes = reasons([found.of(row) for row in rows for found in figures if not found.key.startswith(SPEED)])
    return fragment(
        "comparison",
        "leaderboard",
        introduction=introduction(rows),
        figures=charts(rows),
        means=means_table(rows, figures),
        rows=rows_table(rows, figures).html(),
        notes=notes,
    )


def introduction(rows: Sequence[Row]) -> str:
    """How to read it."""
    said = (
        "From 0 to 1, higher is more suitable for early exit. Intervals are 95 %, over documents. EAS stands "
        "with the range that it can reach. Net speed, over plain decoding, is that of the fastest policy "
        "that passed the test of the floor."
    )
    if not any(row.savings for row in rows):
        return f"{said} No policy was tuned here, so there is no speed at a floor."
    silent = [floor_shown(floor) for floor in floors_of(rows) if not exits_at(rows, floor)]
    return f"{said} At {listed(silent)} no policy that exits early passed." if silent else said


def ordered(rows: Sequence[Row]) -> list[Row]:
    """The fastest certified speed first, then the highest composite; what has neither comes last."""
    return sorted(
        rows,
        key=lambda row: (
            -max((speed_at(row, floor).value or 0.0 for floor in floors_of([row])), default=0.0),
            -(score(row, "composite").value or -1.0),
        ),
    )


def rows_table(rows: Sequence[Row], figures: Sequence[Figure]) -> DataTable:
    """Every row with every figure."""
    columns = [
        *PLACE_COLUMNS,
        *[DataColumn(one.key, one.name, numeric=True) for one in figures],
    ]
    body = []
    for row in rows:
        names = place_cells(row.model.shown, row.workload, row.heads)
        body.append(names + [figure_cell(one, row) for one in figures])
    first = "fastest that passed" if floors_of(rows) else "highest composite"
    caption = f"Every model on every workload, the {first} first"
    return DataTable("leaderboard", caption, columns, body)


def figure_cell(one: Figure, row: Row) -> DataCell:
    """A figure of a row; a speed that is not certified says so."""
    estimate = one.of(row)
    if estimate is NO_SAVING:
        why = without_speed(row, one.key.removeprefix(SPEED))
        return DataCell(styled(why, "undefined"))
    return estimate_cell(estimate, one.number, one.note(row))


def means_table(rows: Sequence[Row], figures: Sequence[Figure]) -> Markup:
    """A line for each model: means over the workloads, without intervals; nothing for a single workload."""
    workloads = distinct([row.workload for row in rows])
    if len(workloads) < 2:
        return Markup()
    groups: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        groups.setdefault((row.model.shown, row.heads), []).append(row)
    columns = [
        DataColumn("model", "Model", facet="model"),
        DataColumn("heads", "Exit heads", facet="heads"),
        *[DataColumn(one.key, one.name, numeric=True) for one in figures],
    ]
    body = []
    for (model, heads), here in groups.items():
        lacking = [name for name in workloads if name not in {row.workload for row in here}]
        note = f"without {listed(lacking)}" if lacking else ""
        names = [facet_cell(model, note=note), facet_cell(heads_name(heads))]
        body.append(names + [mean_cell(one, here, complete=not lacking) for one in figures])
    body.sort(key=lambda cells: tuple(-(cells[place].value or -1.0) for place in ranking(columns)))
    caption = f"Means over {counted(len(workloads), 'workload')}, without intervals"
    return DataTable("means", caption, columns, body, noun="model").html()


def ranking(columns: Sequence[DataColumn]) -> list[int]:
    """The columns that models are ranked by: the boldest floor's speed first, then the composite."""
    speeds = [place for place, column in enumerate(columns) if column.key.startswith(SPEED)]
    return [*reversed(speeds), len(columns) - 1]


def mean_cell(one: Figure, rows: Sequence[Row], *, complete: bool) -> DataCell:
    """The mean over workloads where each has the figure, else how many have it."""
    values = [value for row in rows if (value := one.of(row).value) is not None]
    if complete and len(values) == len(rows):
        return number_cell(sum(values) / len(values), one.number)
    what = "certified" if one.key.startswith(SPEED) else "known"
    return DataCell(stack(styled("–", "undefined"), f"{len(values)} of {len(rows)} {what}"))
