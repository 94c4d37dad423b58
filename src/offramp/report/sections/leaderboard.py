"""The leaderboard of models: every score with its interval, and the best certified speed at each floor."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

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
from offramp.report.findings import NOT_CERTIFIABLE
from offramp.report.formats import (
    NumberFormat,
    counted,
    decimal,
    estimate_text,
    limits_text,
    listed,
    percent,
    percent_tick,
    plain_tick,
    short_text,
    thousandths,
    times,
)
from offramp.report.html import Kind, figure, fragment, stack, styled, table
from offramp.report.names import (
    distinct,
    figure_name,
    floor_order,
    floor_shown,
    heads_name,
    machine_shown,
    row_name,
)
from offramp.report.plot.drawing import SERIES_COUNT, Key, legend
from offramp.report.plot.rows import Point, RowPlot, Track
from offramp.report.plot.rows import Row as PlotRow
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Comparison, Row, Saving
from offramp.tuning.verdict import NEVER

COMPONENTS = ("representation", "increment", "calibration")
SPEED = "speed-"
"""Begins the key of a column of certified speeds; its floor follows."""
OWN_TEXT = "bits per byte of a model's own answers say nothing about a text that others share"
NO_SAVING = Estimate(None)
"""What stands for the speed where nothing is certified; `without_speed` says why."""


@dataclass(frozen=True)
class Figure:
    """A column of the leaderboard: how a row's estimate is found and written. note: a line below it."""

    key: str
    name: str
    of: Callable[[Row], Estimate]
    number: NumberFormat
    note: Callable[[Row], str] = lambda row: ""


def score(row: Row, key: str) -> Estimate:
    """A score of a row; undefined if it has none of that name."""
    return row.scores.get(key, Estimate(None, undefined="not scored"))


def figures_of(rows: Sequence[Row]) -> list[Figure]:
    """The columns that these rows have something for, the composite last: it is not shown to predict."""
    found = [
        Figure(
            f"{SPEED}{floor}",
            f"Net speed, {floor_shown(floor)}",
            partial(speed_at, floor=floor),
            times,
            partial(speed_note, floor=floor),
        )
        for floor in floors_of(rows)
    ]
    found += [Figure(key, figure_name(key), partial(score, key=key), thousandths) for key in COMPONENTS]
    found.append(
        Figure("saturation", figure_name("saturation_skip"), partial(score, key="saturation_skip"), percent)
    )
    found += [
        Figure(
            f"eas-{name.replace(' ', '-')}",
            f"EAS, {name}",
            partial(eas_estimate, name=name),
            thousandths,
            partial(eas_reach, name=name),
        )
        for name in distinct([variant_name(one) for row in rows for one in row.eas])
    ]
    if any(row.bits_per_byte is not None for row in rows):
        found.append(Figure("bits", "Bits per byte", bits_per_byte, thousandths))
    return [*found, Figure("composite", "Composite", partial(score, key="composite"), thousandths)]


def bits_per_byte(row: Row) -> Estimate:
    """The row's bits per byte, without an interval; undefined for what the model wrote itself."""
    return Estimate(None, undefined=OWN_TEXT) if row.own_text else Estimate(row.bits_per_byte)


def variant_name(variant: Mapping[str, Any]) -> str:
    """ "centred logit" or, with another weight than the usual, "centred logit, α 0.3"."""
    name = str(variant["similarity"]).replace("_", " ")
    return name if variant["alpha"] == 0.5 else f"{name}, α {variant['alpha']:g}"


def variant_of(row: Row, name: str) -> Mapping[str, Any] | None:
    """The row's variant of EAS of that name."""
    return next((one for one in row.eas if variant_name(one) == name), None)


def eas_estimate(row: Row, name: str) -> Estimate:
    """The variant's value."""
    found = variant_of(row, name)
    return Estimate(None, undefined="not scored") if found is None else Estimate(**found["score"])


def eas_reach(row: Row, name: str) -> str:
    """The range that the variant can reach: "of 0.18 to 0.67"."""
    found = variant_of(row, name)
    if found is None or found["floor"] is None or found["ceiling"] is None:
        return ""
    return f"of {decimal(found['floor'])} to {decimal(found['ceiling'])}"


def floors_of(rows: Sequence[Row]) -> list[str]:
    """Every floor that something was tuned for, the strictest first."""
    return sorted({saving.floor for row in rows for saving in row.savings}, key=floor_order)


def best_saving(row: Row, floor: str) -> Saving | None:
    """The row's fastest certified answer at a floor over machines; None if none is certified."""
    certified = [one for one in row.savings if one.floor == floor and one.certified]
    return max(certified, key=lambda one: one.net_speedup.value or 0.0, default=None)


def speed_at(row: Row, floor: str) -> Estimate:
    """The best certified net speed at a floor; undefined if nothing is certified."""
    saving = best_saving(row, floor)
    return NO_SAVING if saving is None else saving.net_speedup


def without_speed(row: Row, floor: str) -> str:
    """Why a row has no certified speed at a floor."""
    here = [saving for saving in row.savings if saving.floor == floor]
    if not here:
        return "not asked"
    return NOT_CERTIFIABLE if any(saving.lacks for saving in here) else "nothing faster keeps it"


def speed_note(row: Row, floor: str) -> str:
    """Machine of the best certified speed, or that the best is never to exit."""
    saving = best_saving(row, floor)
    if saving is None:
        return ""
    return "never exits" if saving.policy == NEVER else machine_shown(saving.machine)


def exits_at(rows: Sequence[Row], floor: str) -> bool:
    """Whether a policy that exits early is certified at a floor on any row."""
    savings = [best_saving(row, floor) for row in rows]
    return any(saving is not None and saving.policy != NEVER for saving in savings)


EAS_CHARTED = "centred logit"
CHARTED_ROWS = 40
LEAST_SPAN, LEAST_SPEED_SPAN = 0.1, 0.04
"""How far an axis of scores and one of speeds reaches at least."""


@dataclass(frozen=True)
class Dot:
    """A figure of a row. remark: for the table. hollow: of a policy that never exits. reach: as a bracket."""

    row: Row
    estimate: Estimate
    remark: str = ""
    hollow: bool = False
    reach: tuple[float, float] | None = None


@dataclass(frozen=True)
class DotsFigure:
    """One dot a row, on one axis. rule: what the values are held against, and its name."""

    title: str
    note: str
    dots: Sequence[Dot]
    number: NumberFormat = thousandths
    rule: tuple[float, str] | None = None


def charts(rows: Sequence[Row]) -> list[Markup]:
    """Certified speed at each floor, then the components and EAS."""
    models, workloads = distinct([row_name(row) for row in rows]), distinct([row.workload for row in rows])
    by_model = len(models) > 1 and len(workloads) <= SERIES_COUNT
    colours = {workload: place for place, workload in enumerate(workloads)} if by_model else {}
    figures = [speed_figure(rows, floor) for floor in floors_of(rows) if exits_at(rows, floor)]
    figures += [component_figure(rows, component) for component in COMPONENTS]
    figures += [*eas_figures(rows), oracle_figure(rows), component_figure(rows, "composite")]
    return [drawn(one, colours) for one in figures]


def speed_figure(rows: Sequence[Row], floor: str) -> DotsFigure:
    """The best certified speed of every row at one floor."""
    dots = []
    for row in rows:
        saving = best_saving(row, floor)
        if saving is None:
            dots.append(Dot(row, NO_SAVING, without_speed(row, floor)))
        else:
            hollow = saving.policy == NEVER
            dots.append(Dot(row, saving.net_speedup, speed_note(row, floor), hollow))
    title = f"Certified net speed, {floor_shown(floor)}"
    note = "Over plain decoding, on documents kept apart. Tinted: faster. Hollow: never exits."
    return DotsFigure(title, note, dots, times, (1.0, "plain decoding"))


def component_figure(rows: Sequence[Row], component: str) -> DotsFigure:
    """One component of every row."""
    notes = {"composite": "Geometric mean of the three components; it is unproven that it predicts savings."}
    note = notes.get(component, "From 0 to 1, higher is more suitable.")
    return DotsFigure(figure_name(component), note, [Dot(row, score(row, component)) for row in rows])


def eas_figures(rows: Sequence[Row]) -> list[DotsFigure]:
    """EAS of every row between its floor and ceiling, in one variant: centred logits where there are."""
    names = distinct([variant_name(one) for row in rows for one in row.eas])
    if not names:
        return []
    name = EAS_CHARTED if EAS_CHARTED in names else names[0]
    dots = []
    for row in rows:
        found = variant_of(row, name)
        known = found is not None and found["floor"] is not None and found["ceiling"] is not None
        reach = (found["floor"], found["ceiling"]) if found is not None and known else None
        dots.append(Dot(row, eas_estimate(row, name), eas_reach(row, name), reach=reach))
    note = "Early-exit Adaptability Score. Brackets run from another token's logits to its ceiling."
    return [DotsFigure(f"EAS, {name}", note, dots)]


def oracle_figure(rows: Sequence[Row]) -> DotsFigure:
    """What the saturation oracle would skip of every row, at 100 % agreement."""
    note = "Layers that could be skipped if the full model's answer were known. No policy can know it."
    dots = [Dot(row, score(row, "saturation_skip")) for row in rows]
    return DotsFigure("Saturation oracle skips, at 100 % agreement", note, dots, percent)


def drawn(found: DotsFigure, colours: Mapping[str, int]) -> Markup:
    """Dots as a figure: a line for each model with its workloads, or for each row. colours: of workloads."""
    rows, note = plot_rows(found, colours), found.note
    if len(rows) > CHARTED_ROWS:
        note += f" The first {CHARTED_ROWS} of {len(rows)} are drawn."
    plot = RowPlot(
        found.title,
        note,
        rows[:CHARTED_ROWS],
        rule=found.rule,
        better="right" if found.rule else "",
        number=percent_tick if found.number is percent else plain_tick,
        # Scores of a hair's breadth apart would all be one dot on an axis from 0 to 1.
        least_span=LEAST_SPEED_SPAN if found.rule else LEAST_SPAN,
    )
    lines = [
        [row_name(dot.row), dot.row.workload, *value_cells(dot.estimate, found.number), dot.remark]
        for dot in found.dots
    ]
    header = ["Model", "Workload", "Value", "95 % interval", "Remark"]
    data = table(header, lines, caption=found.title, numeric_from=2)
    key = legend([Key(name, place) for name, place in colours.items()]) if len(colours) > 1 else ""
    kind: Kind = "predicted" if found.rule else "measured"
    return figure(found.title, note, plot.svg(), data, legend=key, kind=kind)


def plot_rows(found: DotsFigure, colours: Mapping[str, int]) -> list[PlotRow]:
    """A row for each model, with a track for each of its workloads in their order, or for each trace."""
    known = [dot for dot in found.dots if dot.estimate.value is not None]
    several = len({row_name(dot.row) for dot in known}) > 1
    grouped: dict[str, list[Dot]] = {}
    for dot in known:
        both = f"{row_name(dot.row)} · {dot.row.workload}" if several else dot.row.workload
        grouped.setdefault(row_name(dot.row) if colours else both, []).append(dot)
    rows = []
    for name, dots in grouped.items():
        dots.sort(key=lambda dot: colours.get(dot.row.workload, 0))
        tracks = [Track((point_of(name, dot, found.number, colours),)) for dot in dots]
        first = dots[0].estimate
        shown = short_text(first.value or 0.0, first.low, first.high, found.number)
        rows.append(PlotRow(name, tuple(tracks), shown if len(dots) == 1 else ""))
    return rows


def point_of(name: str, dot: Dot, number: NumberFormat, colours: Mapping[str, int]) -> Point:
    """One dot with its interval."""
    estimate, workload = dot.estimate, dot.row.workload
    said = f"{name}, {workload}: {estimate_text(estimate, number)}"
    colour, shape = colours.get(workload, 0), 4 if dot.hollow else 0
    return Point(estimate.value or 0.0, said, estimate.low, estimate.high, colour, shape, dot.reach)


def value_cells(estimate: Estimate, number: NumberFormat) -> list[str]:
    """Value and interval as texts."""
    value = "undefined" if estimate.value is None else number(estimate.value)
    return [value, limits_text(estimate.low, estimate.high, number) or "none"]


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
