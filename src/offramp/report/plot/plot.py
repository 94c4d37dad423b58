"""A plot over two axes: lines with interval bands, points, boxes and rules."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from html import escape
from typing import Literal

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from offramp.report.formats import NumberFormat, decimal
from offramp.report.html import escaped
from offramp.report.plot.drawing import (
    LETTER,
    SERIES_COUNT,
    SERIES_DASHES,
    Key,
    Scale,
    box,
    drawing,
    label,
    legend,
    line,
    marker,
    nice_range,
    path,
    tick_label,
)

BANDS = 4
"""Intervals of overlaid lines are drawn for so many of them at most; more bands hide each other."""
LINE_HEIGHT = 12.0

Curve = NDArray[np.float64]
Place = tuple[float, float]


@dataclass(frozen=True)
class Size:
    """A drawing in pixels of its own, with the margins around the plot."""

    width: int
    height: int
    left: int
    right: int
    top: int
    foot: int


MEDIUM = Size(360, 250, 46, 12, 30, 44)
FLAT = Size(360, 150, 46, 12, 30, 30)
WIDE = Size(620, 360, 72, 14, 40, 60)
SMALL = Size(184, 196, 34, 10, 24, 36)
PANEL = Size(360, 236, 42, 12, 32, 36)


@dataclass(frozen=True)
class Axis:
    """An axis. range: found from the data if left out, `include` within it. ticks: how many, or which."""

    name: str
    range: tuple[float, float] | None = None
    number: NumberFormat = decimal
    ticks: int | Sequence[float] = 5
    include: tuple[float, ...] = ()

    def scale(self, values: Sequence[float], start: float, end: float) -> Scale | None:
        """From data to pixels; None if there is no range and no value is finite."""
        found = self.range or nice_range(values, include=self.include)
        return None if found is None else Scale(*found, start, end)

    def ticks_on(self, scale: Scale) -> Sequence[float]:
        """Where the ticks stand."""
        return scale.ticks(self.ticks) if isinstance(self.ticks, int) else self.ticks


@dataclass(frozen=True)
class Series:
    """One line or set of points: x, y, an interval, float64 [points]; NaN breaks it. colour, shape: 0 to 5.

    style: the class of the line, "" for none. markers: how many points get one at most. radii: draws discs of
    these sizes instead. stems: where a line from each point ends, in y. whiskers: draws the interval as a
    line through each point instead of a band. said: what a pointer on each point
    reads; its name and place if left out. labels: names that stand beside the points where there is room.
    """

    name: str
    x: Curve
    y: Curve
    colour: int = 0
    shape: int = 0
    low: Curve | None = None
    high: Curve | None = None
    style: str = "line"
    markers: int = 7
    radii: Curve | None = None
    stems: Curve | None = None
    whiskers: bool = False
    said: Sequence[str] = ()
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Box:
    """A rectangle of the plot, of a class of the page's style, and what a pointer on it reads."""

    left: float
    right: float
    bottom: float
    top: float
    style: str
    said: str = ""


@dataclass(frozen=True)
class Rule:
    """A reference line across the plot with its label; side says where a horizontal rule's label stands."""

    axis: Literal["x", "y"]
    value: float
    name: str
    side: Literal["above", "below"] = "above"


@dataclass(frozen=True)
class Plot:
    """What to draw.

    overlaid: many lines of one kind, whose markers do not stand above each other and which the page's script
    can dim. heading: a name within the drawing, for plots that stand side by side.
    """

    title: str
    description: str
    x: Axis
    y: Axis
    series: tuple[Series, ...] = ()
    boxes: tuple[Box, ...] = ()
    rules: tuple[Rule, ...] = ()
    size: Size = MEDIUM
    style: str = ""
    overlaid: bool = False
    heading: str = ""

    def svg(self) -> Markup:
        """The plot; "" if there is nothing finite to draw."""
        size = self.size
        y_values = [float(v) for s in self.series for c in self._curves(s) for v in c]
        x = self.x.scale([float(v) for s in self.series for v in s.x], size.left, size.width - size.right)
        y = self.y.scale(y_values, size.height - size.foot, size.top)
        drawn = self.boxes or any(np.isfinite(series.y).any() for series in self.series)
        if x is None or y is None or not drawn:
            return Markup()
        rules = [rule for rule in self.rules if (x if rule.axis == "x" else y).holds(rule.value)]
        parts = self._axes(x, y) + [draw_rule(rule, x, y) for rule in rules]
        parts += [draw_box(one, x, y) for one in self.boxes]
        parts += [self._series(place, series, x, y) for place, series in enumerate(self.series)]
        parts += [name_rule(rule, x, y) for rule in rules]
        parts.append(place_labels([series for series in self.series if series.labels], x, y, size))
        return drawing(
            size.width, size.height, self.title, self.description, "".join(parts), style=self.style
        )

    def legend(self) -> Markup:
        """The legend that goes with the plot."""
        keys = [Key(series.name, series.colour, series.shape) for series in self.series]
        return legend(keys, lines=self.overlaid)

    def _curves(self, series: Series) -> list[Curve]:
        """What the vertical axis has to hold; an interval that is not drawn needs no room."""
        curves = [series.y] if self.overlaid else [series.y, series.low, series.high]
        return [curve for curve in curves if curve is not None]

    def _axes(self, x: Scale, y: Scale) -> list[str]:
        size, bottom = self.size, y.start
        if self.heading:
            parts = [label(x.start, size.top - 10, self.heading, style="row")]
            parts.append(label(x.end, size.top - 10, self.y.name, anchor="end", style="name"))
        else:
            parts = [label(4, size.top - 16, self.y.name, style="name")]
        for tick in self.y.ticks_on(y):
            parts.append(line(x.start, y(tick), x.end, y(tick), "grid"))
            parts.append(label(x.start - 6, y(tick) + 4, self.y.number(tick), anchor="end"))
        for tick in self.x.ticks_on(x):
            parts.append(line(x(tick), bottom, x(tick), bottom + 4, "axis"))
            parts.append(tick_label(x(tick), bottom + 0.4 * size.foot, self.x.number(tick), (0, size.width)))
        parts.append(line(x.start, bottom, x.end, bottom, "axis"))
        middle = (x.start + x.end) / 2
        return [*parts, label(middle, size.height - 6, self.x.name, anchor="middle", style="name")]

    def _series(self, place: int, series: Series, x: Scale, y: Scale) -> str:
        parts, points = [], []
        banded = not series.whiskers and (not self.overlaid or len(self.series) <= BANDS)
        if banded and series.low is not None and series.high is not None:
            parts.append(band(series.x, series.low, series.high, x, y))
        for run in finite_runs(series.x, series.y):
            points.extend(run)
            if series.style:
                pixels = thinned([(x(float(series.x[i])), y(float(series.y[i]))) for i in run])
                parts.append(
                    path(pixels, dash=SERIES_DASHES[series.shape % SERIES_COUNT], style=series.style)
                )
        parts += self._points(place if self.overlaid else 0, series, points, x, y)
        group = f"s{series.colour % SERIES_COUNT}"
        if self.overlaid:
            return f'<g class="{group} profile" data-line="{escape(series.name)}">{"".join(parts)}</g>'
        return f'<g class="{group}">{"".join(parts)}</g>'

    def _points(self, place: int, series: Series, points: list[int], x: Scale, y: Scale) -> Iterator[str]:
        """Stems, discs and markers. place: moves the markers of overlaid lines apart."""
        if not series.markers:
            return
        every = max(1, math.ceil(len(points) / series.markers))
        for i in points[(place % every) :: every]:
            at, value = float(series.x[i]), float(series.y[i])
            said = f"{series.name}: {self.y.number(value)} at {self.x.name} {self.x.number(at)}"
            said = series.said[i] if series.said else said
            if series.whiskers and series.low is not None and series.high is not None:
                yield line(x(at), y(float(series.low[i])), x(at), y(float(series.high[i])), "gap")
            if series.stems is not None:
                yield line(x(at), y(float(series.stems[i])), x(at), y(value), "gap")
            if series.radii is None:
                yield marker(x(at), y(value), series.shape, said, 4.0 if self.overlaid else 3.2)
            else:
                disc = f'cx="{x(at):.1f}" cy="{y(value):.1f}" r="{float(series.radii[i]):.1f}"'
                yield f'<circle class="disc" {disc}><title>{escaped(said)}</title></circle>'


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


def thinned(points: list[Place], distance: float = 1.0) -> list[Place]:
    """The points at least a pixel from the last one kept, and the end; the eye sees no difference."""
    kept = points[:1]
    for point in points[1:]:
        if abs(point[0] - kept[-1][0]) + abs(point[1] - kept[-1][1]) >= distance:
            kept.append(point)
    return kept if kept[-1] == points[-1] else [*kept, points[-1]]


def band(at: Curve, low: Curve, high: Curve, x: Scale, y: Scale) -> str:
    """The area between two curves, float64 [points]; NaN in one of them breaks it."""
    parts = []
    for run in finite_runs(at, low + high):
        upper = [f"{x(float(at[i])):.1f} {y(float(high[i])):.1f}" for i in run]
        lower = [f"{x(float(at[i])):.1f} {y(float(low[i])):.1f}" for i in reversed(run)]
        parts.append(f'<path class="band" d="M{"L".join(upper + lower)}Z"/>')
    return "".join(parts)


def draw_box(one: Box, x: Scale, y: Scale) -> str:
    """A rectangle."""
    left, top = x(one.left), y(one.top)
    return box(left, top, x(one.right) - left, y(one.bottom) - top, style=one.style, said=one.said)


def draw_rule(rule: Rule, x: Scale, y: Scale) -> str:
    """A reference line across the plot."""
    if rule.axis == "x":
        return line(x(rule.value), y.end, x(rule.value), y.start, "rule")
    return line(x.start, y(rule.value), x.end, y(rule.value), "rule")


def name_rule(rule: Rule, x: Scale, y: Scale) -> str:
    """A reference line's name; drawn late, so that no series crosses it out."""
    if rule.axis == "x":
        return label(x(rule.value), y.end - 4, rule.name, anchor="middle", style="rule-name")
    offset = -4 if rule.side == "above" else 12
    return label(x.start + 4, y(rule.value) + offset, rule.name, style="rule-name")


def place_labels(several: Sequence[Series], x: Scale, y: Scale, size: Size) -> str:
    """Names beside their points, where there is room for them."""
    places = [
        (name, (x(float(at)), y(float(value))))
        for series in several
        for name, at, value in zip(series.labels, series.x, series.y, strict=True)
    ]
    taken = [(at - 4, down - 4, at + 4, down + 4) for _, (at, down) in places]
    parts = []
    for name, (at, down) in places:
        width = LETTER * len(name)
        for dx, dy, anchor in ((6, 4, "start"), (-6, 4, "end"), (0, -7, "middle"), (0, 15, "middle")):
            start = at + dx - {"start": 0.0, "end": width, "middle": width / 2}[anchor]
            area = (start, down + dy - LINE_HEIGHT + 2, start + width, down + dy + 2)
            inside = area[0] >= size.left and area[2] <= size.width and area[1] >= 14
            if inside and not any(_overlap(area, other) for other in taken):
                taken.append(area)
                parts.append(label(at + dx, down + dy, name, anchor=anchor, style="halo"))
                break
    return "".join(parts)


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
