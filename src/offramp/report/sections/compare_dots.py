"""Charts of a leaderboard: certified speeds and scores as dots with intervals, a row a model or a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from offramp.report.charts.dots_chart import Dot, DotRow, DotsChart
from offramp.report.charts.drawing import SERIES_COUNT, legend
from offramp.report.comparison_answers import NEVER
from offramp.report.comparison_words import (
    distinct,
    figure_name,
    floor_shown,
    limits_text,
    percent_tick,
    plain_tick,
    row_name,
    thousandths,
)
from offramp.report.formats import NumberFormat, percent, times
from offramp.report.markup import element, figure, table
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


def charts(rows: Sequence[Row]) -> str:
    """Certified speed at each floor, then the components and EAS."""
    models, workloads = distinct([row_name(row) for row in rows]), distinct([row.workload for row in rows])
    by_model = len(models) > 1 and len(workloads) <= SERIES_COUNT
    colours = {workload: place for place, workload in enumerate(workloads)} if by_model else {}
    key = legend([(name, place, 0) for name, place in colours.items()]) if len(colours) > 1 else ""
    floors = [floor for floor in floors_of(rows) if exits_at(rows, floor)]
    drawn = "".join(speed_figure(rows, floor, colours, key) for floor in floors)
    drawn += "".join(component_figure(rows, component, colours, key) for component in COMPONENTS)
    drawn += eas_figure(rows, colours, key) + oracle_figure(rows, colours, key)
    drawn += component_figure(rows, "composite", colours, key)
    return element("div", drawn, class_="charts dots")


def speed_figure(rows: Sequence[Row], floor: str, colours: Mapping[str, int], key: str) -> str:
    """The best certified speed of every row at one floor."""
    found = {id(row): saving for row in rows if (saving := best_saving(row, floor)) is not None}
    title = f"Certified net speed, {floor_shown(floor)}"
    drawn, data = [], []
    for row in rows:
        saving = found.get(id(row))
        speedup = NO_SAVING if saving is None else saving.net_speedup
        where = without_speed(row, floor) if saving is None else speed_note(row, floor)
        data.append([row_name(row), row.workload, *value_cells(speedup, times), where])
        if saving is not None and speedup.value is not None:
            dot = Dot(row.workload, speedup.value, speedup.low, speedup.high, hollow=saving.policy == NEVER)
            drawn.append((row, dot))
    note = "Over plain decoding, on documents kept apart. Tinted: faster. Hollow: never exits."
    return dots_figure(title, note, drawn, data, colours, key, rule=(1.0, "plain decoding"), number=times)


def component_figure(rows: Sequence[Row], component: str, colours: Mapping[str, int], key: str) -> str:
    """One component of every row."""
    drawn, data = [], []
    for row in rows:
        estimate = score(row, component)
        data.append([row_name(row), row.workload, *value_cells(estimate, thousandths), ""])
        if estimate.value is not None:
            drawn.append((row, Dot(row.workload, estimate.value, estimate.low, estimate.high)))
    notes = {"composite": "Geometric mean of the three components; it is unproven that it predicts savings."}
    note = notes.get(component, "From 0 to 1, higher is more suitable.")
    return dots_figure(figure_name(component), note, drawn, data, colours, key, number=thousandths)


def eas_figure(rows: Sequence[Row], colours: Mapping[str, int], key: str) -> str:
    """EAS of every row between its floor and ceiling, in one variant: centred logits where there are."""
    names = distinct([variant_name(one) for row in rows for one in row.eas])
    if not names:
        return ""
    name = EAS_CHARTED if EAS_CHARTED in names else names[0]
    drawn, data = [], []
    for row in rows:
        found, estimate = variant_of(row, name), eas_estimate(row, name)
        data.append([row_name(row), row.workload, *value_cells(estimate, thousandths), eas_reach(row, name)])
        if found is not None and estimate.value is not None:
            reach = {"floor": found["floor"], "ceiling": found["ceiling"]}
            drawn.append((row, Dot(row.workload, estimate.value, estimate.low, estimate.high, **reach)))
    note = "Early-exit Adaptability Score. Brackets run from another token's logits to its ceiling."
    return dots_figure(f"EAS, {name}", note, drawn, data, colours, key, number=thousandths)


def oracle_figure(rows: Sequence[Row], colours: Mapping[str, int], key: str) -> str:
    """What the saturation oracle would skip of every row, at 100 % agreement."""
    drawn, data = [], []
    for row in rows:
        estimate = score(row, "saturation_skip")
        data.append([row_name(row), row.workload, *value_cells(estimate, percent), ""])
        if estimate.value is not None:
            drawn.append((row, Dot(row.workload, estimate.value, estimate.low, estimate.high)))
    note = "Layers that could be skipped if the full model's answer were known. No policy can know it."
    return dots_figure(
        "Saturation oracle skips, at 100 % agreement", note, drawn, data, colours, key, number=percent
    )


def dots_figure(
    title: str,
    note: str,
    found: Sequence[tuple[Row, Dot]],
    data: Sequence[Sequence[str]],
    colours: Mapping[str, int],
    key: str,
    *,
    number: NumberFormat,
    rule: tuple[float, str] | None = None,
) -> str:
    """Dots of rows as a figure: a line for each model with its workloads, or for each row."""
    grouped: dict[str, list[Dot]] = {}
    several = len({row_name(row) for row, _ in found}) > 1
    for row, dot in found:
        shown = replace(dot, colour=colours.get(row.workload, 0))
        name = row_name(row) if colours else f"{row_name(row)} · {row.workload}" if several else row.workload
        grouped.setdefault(name, []).append(shown)
    order = list(colours)
    rows = [
        DotRow(
            name,
            tuple(sorted(dots, key=lambda dot: order.index(dot.name) if dot.name in order else 0)),
            value_text(dots[0], number) if len(dots) == 1 else "",
        )
        for name, dots in grouped.items()
    ]
    if len(rows) > CHARTED_ROWS:
        note += f" The first {CHARTED_ROWS} of {len(rows)} are drawn."
    # Scores of a hair's breadth apart would all be one dot on an axis from 0 to 1.
    chart = DotsChart(
        title,
        note,
        tuple(rows[:CHARTED_ROWS]),
        rule=rule,
        better=rule is not None,
        least_span=LEAST_SPEED_SPAN if rule else LEAST_SPAN,
        number=number,
        tick=percent_tick if number is percent else plain_tick,
    )
    header = ["Model", "Workload", "Value", "95 % interval", "Remark"]
    whole = table(header, data, caption=title, numeric_from=2)
    return figure(title, note, chart.svg(), whole, legend=key, kind="predicted" if rule else "measured")


def value_cells(estimate: Estimate, number: NumberFormat) -> list[str]:
    """Value and interval as texts."""
    value = "undefined" if estimate.value is None else number(estimate.value)
    return [value, limits_text(estimate.low, estimate.high, number) or "none"]


def value_text(dot: Dot, number: NumberFormat) -> str:
    """ "0.412 (0.402 to 0.421)"."""
    limits = limits_text(dot.low, dot.high, number)
    return f"{number(dot.value)}{f' ({limits})' if limits else ''}"
