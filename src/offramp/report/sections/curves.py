"""Curves over depth of many models or texts on one plot."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
from markupsafe import Markup

from offramp.report.curves import CURVES, CurveKind, rounded
from offramp.report.html import fragment
from offramp.report.names import distinct, row_name
from offramp.report.plot.drawing import SERIES_COUNT, drawn
from offramp.report.plot.plot import BANDS, WIDE, Axis, Plot, Series
from offramp.report.table import Column, Table
from offramp.studies.comparison.results import Comparison, Row

DEPTHS = (0.1, 0.25, 0.5, 0.75, 0.9, 1.0)
"""Where the table beside a chart gives the value; it holds from an exit to the next."""


def profiles_section(comparison: Comparison) -> Markup:
    """Every curve, over the models of a workload and over the workloads of a model."""
    groups = charts_of(comparison.rows)
    drawn = [
        (kind.name, [found for name, by, rows in groups if (found := profile_figure(kind, name, rows, by))])
        for kind in CURVES.values()
        if kind.note
    ]
    curves = [(name, figures) for name, figures in drawn if figures]
    return fragment("comparison", "profiles", introduction(groups), curves) if curves else Markup()


def introduction(groups: Sequence[tuple[str, str, Sequence[Row]]]) -> str:
    """What the axis is, and where intervals are left out."""
    said = (
        "Models differ in their number of layers: depth is the share of the layers' work done up to an exit."
    )
    if any(len(rows) > BANDS for _, _, rows in groups):
        said += f" Bands are 95 % intervals; charts of more than {BANDS} lines have none."
    return said


def charts_of(rows: Sequence[Row]) -> list[tuple[str, str, list[Row]]]:
    """What is overlaid: (name, "workload" or "model", rows). One line a model, or one line a workload."""
    workloads, models = distinct([row.workload for row in rows]), distinct([row_name(row) for row in rows])
    found = []
    if len(models) > 1 or len(workloads) == 1:
        found += [(name, "workload", [row for row in rows if row.workload == name]) for name in workloads]
    if len(workloads) > 1:
        found += [(name, "model", [row for row in rows if row_name(row) == name]) for name in models]
    return found


def profile_figure(kind: CurveKind, name: str, rows: Sequence[Row], by: str) -> Markup:
    """One chart with its legend and table; nothing if no row has the curve."""
    having = [row for row in rows if kind.key in row.card.curves.values]
    profiles = [profile_of(row, kind.key, by, place) for place, row in enumerate(having)]
    plot = Plot(
        title=f"{kind.name}, {name}",
        description=kind.note,
        x=Axis("depth: share of the layers' work done", (0.0, 1.0), rounded, (0.0, 0.25, 0.5, 0.75, 1.0)),
        y=Axis(kind.unit, (0.0, 1.0) if kind.share else None, kind.number, include=(0.0,)),
        series=tuple(profiles),
        size=WIDE,
        style="profile-chart",
        overlaid=True,
    )
    if not any(np.isfinite(profile.y).any() for profile in profiles):
        return Markup()
    caption = f"{kind.name} at a depth, {name}"
    columns: list[Column[Series]] = [
        Column({"workload": "Model", "model": "Workload"}[by], lambda profile: profile.name),
        *(
            Column(f"{100 * depth:.0f} %", partial(value_at, depth=depth), kind.number, numeric=True)
            for depth in DEPTHS
        ),
    ]
    data = Table(columns, caption=caption).html(profiles)
    whole = drawn(plot, data, legend=plot.legend(), kind="measured")
    return fragment("comparison", "profile", whole, kind.name, f"{by}: {name}")


def profile_of(row: Row, key: str, by: str, place: int) -> Series:
    """A row's curve over depth. place: among those on its plot; each has a colour and a shape of its own."""
    curves = row.card.curves
    limits = curves.intervals.get(key)
    low, high = (None, None) if limits is None else (limits.low, limits.high)
    name = row_name(row) if by == "workload" else row.workload
    x, y = curves.depth_fraction, curves.values[key]
    colour, shape = look(place)
    return Series(name, x, y, colour, shape, low, high, markers=6, said=[name] * len(x))


def look(place: int) -> tuple[int, int]:
    """Colour and shape of a line: the first six differ in both, later ones in the pair of them."""
    return place % SERIES_COUNT, (place + place // SERIES_COUNT) % SERIES_COUNT


def value_at(profile: Series, depth: float) -> float | None:
    """The curve at a depth: the value of the last exit up to it, None where it is undefined."""
    reached = np.flatnonzero(profile.x <= depth + 1e-9)
    value = float(profile.y[reached[-1]]) if len(reached) else float("nan")
    return value if np.isfinite(value) else None
