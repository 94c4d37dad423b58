"""A line chart: series with interval bands, rules, and axes that end at round numbers."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from offramp.report.charts.drawing import (
    SERIES_COUNT,
    SERIES_DASHES,
    drawing,
    label,
    legend,
    line,
    marker,
    path,
)
from offramp.report.charts.scale import Scale, nice_range
from offramp.report.formats import NumberFormat, decimal

WIDTH, HEIGHT = 360, 250
LEFT, RIGHT, TOP, FOOT = 46, 348, 30, 44
MARKERS = 7

Curve = NDArray[np.float64]
Point = tuple[float, float]


@dataclass(frozen=True)
class Series:
    """One line: x, y and an interval, float64 [points]; NaN breaks it. colour, shape: 0 to 5."""

    name: str
    x: Curve
    y: Curve
    colour: int = 0
    shape: int = 0
    low: Curve | None = None
    high: Curve | None = None


@dataclass(frozen=True)
class Rule:
    """A reference line across the plot with its label; side says where a horizontal rule's label stands."""

    axis: Literal["x", "y"]
    value: float
    name: str
    side: Literal["above", "below"] = "above"


@dataclass(frozen=True)
class LineChart:
    """What to draw; ranges left out are found from the data and end at round numbers."""

    title: str
    description: str
    x_label: str
    y_label: str
    series: tuple[Series, ...]
    x_range: tuple[float, float]
    y_range: tuple[float, float] | None = None
    rules: tuple[Rule, ...] = ()
    x_format: NumberFormat = decimal
    y_format: NumberFormat = decimal
    include_zero: bool = True
    height: int = HEIGHT

    def svg(self) -> str | None:
        """The chart, or None if no point is finite."""
        y_range = self.y_range or self._found_range()
        if y_range is None or not any(np.isfinite(series.y).any() for series in self.series):
            return None
        x, y = Scale(*self.x_range, LEFT, RIGHT), Scale(*y_range, self.height - FOOT, TOP)
        rules = [rule for rule in self.rules if (x if rule.axis == "x" else y).holds(rule.value)]
        content = self._axes(x, y) + "".join(draw_rule(rule, x, y) for rule in rules)
        content += "".join(draw_band(series, x, y) for series in self.series)
        content += "".join(self._draw_series(series, x, y) for series in self.series)
        content += "".join(name_rule(rule, x, y) for rule in rules)
        return drawing(WIDTH, self.height, self.title, self.description, content)

    def legend(self) -> str:
        """The legend that goes with the chart."""
        return legend([(series.name, series.colour, series.shape) for series in self.series])

    def _found_range(self) -> tuple[float, float] | None:
        values = [float(v) for s in self.series for c in (s.y, s.low, s.high) if c is not None for v in c]
        return nice_range(values, include=(0.0,) if self.include_zero else ())

    def _axes(self, x: Scale, y: Scale) -> str:
        bottom = y.start
        parts = [label(4, 14, self.y_label, style="name")]
        for tick in y.ticks(5):
            parts.append(line(LEFT, y(tick), RIGHT, y(tick), "grid"))
            parts.append(label(LEFT - 6, y(tick) + 4, self.y_format(tick), anchor="end"))
        for tick in x.ticks(6):
            parts.append(line(x(tick), bottom, x(tick), bottom + 4, "axis"))
            parts.append(label(x(tick), bottom + 17, self.x_format(tick), anchor="middle"))
        parts.append(line(LEFT, bottom, RIGHT, bottom, "axis"))
        parts.append(label((LEFT + RIGHT) / 2, self.height - 6, self.x_label, anchor="middle", style="name"))
        return "".join(parts)

    def _draw_series(self, series: Series, x: Scale, y: Scale) -> str:
        dash = SERIES_DASHES[series.shape % SERIES_COUNT]
        parts, points = [], []
        for run in finite_runs(series.x, series.y):
            pixels = thinned([(x(float(series.x[i])), y(float(series.y[i]))) for i in run])
            parts.append(path(pixels, dash=dash))
            points.extend(run)
        every = max(1, math.ceil(len(points) / MARKERS))
        for i in points[::every]:
            at, value = float(series.x[i]), float(series.y[i])
            title = f"{series.name}: {self.y_format(value)} at {self.x_label} {self.x_format(at)}"
            parts.append(marker(x(at), y(value), series.shape, title))
        return f'<g class="s{series.colour % SERIES_COUNT}">{"".join(parts)}</g>'


def finite_runs(x: Curve, y: Curve) -> Iterator[list[int]]:
    """Indices of each unbroken stretch of finite points."""
    run: list[int] = []
    for i, good in enumerate(np.isfinite(x) & np.isfinite(y)):
        if good:
            run.append(i)
        elif run:
            yield run
            run = []
    if run:
        yield run


def thinned(points: list[Point], distance: float = 1.0) -> list[Point]:
    """The points at least a pixel from the last one kept, and the end; the eye sees no difference."""
    kept = points[:1]
    for point in points[1:]:
        if abs(point[0] - kept[-1][0]) + abs(point[1] - kept[-1][1]) >= distance:
            kept.append(point)
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def draw_band(series: Series, x: Scale, y: Scale) -> str:
    """The interval of a series as a band."""
    if series.low is None or series.high is None:
        return ""
    band = band_between(series.x, series.low, series.high, x, y)
    return f'<g class="s{series.colour % SERIES_COUNT}">{band}</g>'


def band_between(at: Curve, low: Curve, high: Curve, x: Scale, y: Scale) -> str:
    """The area between two curves, float64 [points]; NaN in one of them breaks it."""
    parts = []
    for run in finite_runs(at, low + high):
        upper = [f"{x(float(at[i])):.1f} {y(float(high[i])):.1f}" for i in run]
        lower = [f"{x(float(at[i])):.1f} {y(float(low[i])):.1f}" for i in reversed(run)]
        parts.append(f'<path class="band" d="M{"L".join(upper + lower)}Z"/>')
    return "".join(parts)


def draw_rule(rule: Rule, x: Scale, y: Scale) -> str:
    """A reference line across the plot."""
    if rule.axis == "x":
        return line(x(rule.value), TOP, x(rule.value), y.start, "rule")
    return line(LEFT, y(rule.value), RIGHT, y(rule.value), "rule")


def name_rule(rule: Rule, x: Scale, y: Scale) -> str:
    """A reference line's name; drawn last, so that no series crosses it out."""
    if rule.axis == "x":
        return label(x(rule.value), TOP - 4, rule.name, anchor="middle", style="rule-name")
    offset = -4 if rule.side == "above" else 12
    return label(LEFT + 4, y(rule.value) + offset, rule.name, style="rule-name")
