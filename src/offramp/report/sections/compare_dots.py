"""Charts of a leaderboard: certified speeds and scores as dots with intervals, a row a model or a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from offramp.report.comparison_answers import NEVER
from offramp.report.comparison_words import distinct, figure_name, floor_shown, row_name
from offramp.report.formats import (
    NumberFormat,
    estimate_text,
    limits_text,
    percent,
    percent_tick,
    plain_tick,
    thousandths,
    times,
)
from offramp.report.html import Kind, figure, table
from offramp.report.plot.drawing import SERIES_COUNT, Key, legend
from offramp.report.plot.rows import Point, RowPlot, Track
from offramp.report.plot.rows import Row as PlotRow
from offramp.report.sections.compare_figures import (
    COMPONENTS,
    NO_SAVING,
    best_saving,
    eas_estimate,
    eas_reach,
    exits_at,
    floors_of,
    score,
    speed_note,
    variant_name,
    variant_of,
    without_speed,
)
from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Row

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
        alone = row_text(dots[0].estimate, found.number) if len(dots) == 1 else ""
        rows.append(PlotRow(name, tuple(tracks), alone))
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


def row_text(estimate: Estimate, number: NumberFormat) -> str:
    """ "0.412 (0.402 to 0.421)"."""
    limits = limits_text(estimate.low, estimate.high, number)
    return f"{number(estimate.value or 0.0)}{f' ({limits})' if limits else ''}"
