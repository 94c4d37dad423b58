"""Plots over two axes, and of rows on one: SVG that can be read on a phone, in both themes and in print."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Literal

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from offramp.report.drawing import (
    LETTER,
    SERIES_COUNT,
    SERIES_DASHES,
    Key,
    LogScale,
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
from offramp.report.formats import NumberFormat, decimal
from offramp.report.html import escaped
from offramp.scoring.estimate import Estimate

BANDS = 4
"""Intervals of overlaid lines are drawn for so many of them at most; more bands hide each other."""
LINE_HEIGHT = 12.0
LOG_ROOM = 1.12
"""Times the largest value that an axis by logarithms goes on to, and likewise below the least."""

Curve = NDArray[np.float64]
Pixel = tuple[float, float]
LabelPlace = tuple[float, float, Literal["start", "middle", "end"]]
"""Where a label stands, in pixels from the left and the top, and which part of it stands there."""
Area = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels."""


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
    """An axis. range: found from the data if left out, `include` within it. ticks: how many, or which.

    log: by the logarithm of the data, those above 0.
    """

    name: str
    range: tuple[float, float] | None = None
    number: NumberFormat = decimal
    ticks: int | Sequence[float] = 5
    include: tuple[float, ...] = ()
    log: bool = False

    def scale(self, values: Sequence[float], start: float, end: float) -> Scale | None:
        """From data to pixels; None if there is no range and no value is finite."""
        if self.log:
            above = [value for value in values if 0.0 < value < math.inf]
            return LogScale(min(above) / LOG_ROOM, max(above) * LOG_ROOM, start, end) if above else None
        found = self.range or nice_range(values, include=self.include)
        return None if found is None else Scale(*found, start, end)

    def ticks_on(self, scale: Scale) -> Sequence[float]:
        """Where the ticks stand."""
        return scale.ticks(self.ticks) if isinstance(self.ticks, int) else self.ticks


@dataclass(frozen=True)
class PlotSeries:
    """One line or set of points, every curve float64 [points]; NaN breaks it."""

    name: str
    x: Curve
    y: Curve
    colour: int = 0
    """0 to 5, as `shape`."""
    shape: int = 0
    low: Curve | None = None
    """The lower end of the interval."""
    high: Curve | None = None
    style: str = "line"
    """The class of the line, "" for none."""
    markers: int = 7
    """How many points get one at most."""
    radii: Curve | None = None
    """Draws discs of these sizes instead, in pixels."""
    stems: Curve | None = None
    """Where a line from each point ends, in y."""
    whiskers: bool = False
    """Draws the interval as a line through each point instead of a band."""
    said: Sequence[str] = ()
    """What a pointer on each point reads; its name and place if left out."""
    labels: Sequence[str] = ()
    """Names that stand beside the points where there is room."""


@dataclass(frozen=True)
class Box:
    """A rectangle of the plot, as far as that reaches, of a class of the page's style, and what a pointer on
    it reads."""

    left: float
    right: float
    bottom: float
    top: float
    style: str
    said: str = ""


@dataclass(frozen=True)
class ReferenceLine:
    """A reference line across the plot with its label; side says where a horizontal rule's label stands."""

    axis: Literal["x", "y"]
    value: float
    name: str
    side: Literal["above", "below"] = "above"


@dataclass(frozen=True)
class PlotName:
    """What a rule or a point is called."""

    text: str
    places: tuple[LabelPlace, ...]
    """Where it may stand, the best first."""
    style: str


@dataclass(frozen=True)
class AnyPlot(ABC):
    """What every plot has: what it shows, in words, and a class of the page's style."""

    title: str
    description: str
    style: str = field(default="", kw_only=True)

    @abstractmethod
    def svg(self) -> Markup:
        """The plot; "" if there is nothing to draw."""

    def drawing(self, width: int, height: float, parts: Iterable[str]) -> Markup:
        """Its parts as one drawing."""
        return drawing(width, height, self.title, self.description, "".join(parts), style=self.style)


@dataclass(frozen=True)
class Plot(AnyPlot):
    """Lines, points and boxes over two axes."""

    x: Axis
    y: Axis
    series: tuple[PlotSeries, ...] = ()
    boxes: tuple[Box, ...] = ()
    rules: tuple[ReferenceLine, ...] = ()
    size: Size = MEDIUM
    overlaid: bool = False
    """Many lines of one kind: markers do not stand above each other, and the page's script dims them."""
    heading: str = ""
    """A name within the drawing, for plots that stand side by side."""

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
        parts = self._axes(x, y)
        names = self._names(rules, x, y)
        for rule, name in zip(rules, names, strict=False):
            at = (x if rule.axis == "x" else y)(rule.value)
            ends = (at, y.end, at, y.start) if rule.axis == "x" else (x.start, at, x.end, at)
            parts.append(line(*ends, "rule", said="" if name else rule.name))
        for area in self.boxes:
            left, top = x(max(area.left, x.low)), y(min(area.top, y.high))
            width, height = x(min(area.right, x.high)) - left, y(max(area.bottom, y.low)) - top
            parts.append(box(left, top, width, height, style=area.style, said=area.said))
        parts += [self._series(place, series, x, y) for place, series in enumerate(self.series)]
        parts += names  # last, so that no series crosses them out
        return self.drawing(size.width, size.height, parts)

    def legend(self) -> Markup:
        """The legend that goes with the plot."""
        keys = [Key(series.name, series.colour, series.shape) for series in self.series]
        return legend(keys, lines=self.overlaid)

    def _names(self, rules: Sequence[ReferenceLine], x: Scale, y: Scale) -> list[str]:
        """The names of rules, then those of points, each "" where there is no room for it."""
        size = self.size
        points = [
            (x(float(at)), y(float(value)))
            for series in self.series
            if series.labels
            for at, value in zip(series.x, series.y, strict=True)
        ]
        heading = size.top - 14.0  # the axes' own names stand above, their numbers left and below
        taken = [
            (-math.inf, -math.inf, math.inf, heading),
            (-math.inf, -math.inf, x.start, math.inf),
            (-math.inf, y.start, math.inf, math.inf),
            (size.width, -math.inf, math.inf, math.inf),
            *((right - 4, down - 4, right + 4, down + 4) for right, down in points),
        ]
        names = [name_of_rule(rule, x, y) for rule in rules]
        names += [name for series in self.series for name in names_of_points(series, x, y)]
        return place_names(names, taken)

    def _curves(self, series: PlotSeries) -> list[Curve]:
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

    def _series(self, place: int, series: PlotSeries, x: Scale, y: Scale) -> str:
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

    def _points(self, place: int, series: PlotSeries, points: list[int], x: Scale, y: Scale) -> Iterator[str]:
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


def thinned(points: list[Pixel], distance: float = 1.0) -> list[Pixel]:
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


def name_of_rule(rule: ReferenceLine, x: Scale, y: Scale) -> PlotName:
    """A reference line's name: at its end, else further along it."""
    places: list[LabelPlace] = []
    if rule.axis == "x":
        at, down = x(rule.value), y.end - 4
        while down < y.start:
            places += [(at, down, "middle"), (at + 3, down, "start"), (at - 3, down, "end")]
            down += LINE_HEIGHT
    else:
        sides = (-4, 12) if rule.side == "above" else (12, -4)
        middle = (x.start + x.end) / 2
        for side in sides:
            down = y(rule.value) + side
            places += [(x.start + 4, down, "start"), (x.end - 4, down, "end"), (middle, down, "middle")]
    return PlotName(rule.name, tuple(places), "rule-name")


AROUND: tuple[LabelPlace, ...] = (
    (6, 4, "start"),
    (-6, 4, "end"),
    (0, -7, "middle"),
    (0, 15, "middle"),
    (6, -5, "start"),
    (6, 13, "start"),
    (-6, -5, "end"),
    (-6, 13, "end"),
)
"""Where a point's name may stand, seen from the point, the best first."""


def names_of_points(series: PlotSeries, x: Scale, y: Scale) -> Iterator[PlotName]:
    """The names of a series' points, beside them."""
    for text, at, value in zip(series.labels, series.x, series.y, strict=bool(series.labels)):
        right, down = x(float(at)), y(float(value))
        places = tuple((right + dx, down + dy, anchor) for dx, dy, anchor in AROUND)
        yield PlotName(text, places, "halo")


def place_names(names: Sequence[PlotName], taken: Sequence[Area]) -> list[str]:
    """Each name drawn at the first of its places where it covers nothing; "" where there is no such place.

    taken: what is covered already. Names are placed in their order.
    """
    areas, drawn = list(taken), []
    for name in names:
        free = ((place, area_of(name.text, place)) for place in name.places)
        found = next(((p, area) for p, area in free if not any(_overlap(area, one) for one in areas)), None)
        if found is None:
            drawn.append("")
            continue
        (right, down, anchor), area = found
        areas.append(area)
        drawn.append(label(right, down, name.text, anchor=anchor, style=name.style))
    return drawn


def area_of(text: str, place: LabelPlace) -> Area:
    """What a label of one line covers, about."""
    at, down, anchor = place
    width = LETTER * len(text)
    left = at - {"start": 0.0, "middle": width / 2, "end": width}[anchor]
    return left, down - LINE_HEIGHT + 2, left + width, down + 2


def _overlap(first: Area, second: Area) -> bool:
    return first[0] < second[2] and second[0] < first[2] and first[1] < second[3] and second[1] < first[3]


WIDTH, LEFT, RIGHT = 360, 10, 350
RULE_NAME, NAME, STEP, BAR, GAP, FOOT = 16, 18, 11, 11, 7, 22
LONGEST, ROW_LETTER = 49, 6.3
"""Signs that a row's name and number have room for, and about what one takes, in pixels of the drawing."""


@dataclass(frozen=True)
class Point:
    """One figure with its interval."""

    figure: Estimate
    said: str
    """What a pointer on it reads."""
    colour: int | None = 0
    """0 to 5, None for that of the text."""
    shape: int = 0
    """As in `offramp.report.drawing.marker`."""
    reach: tuple[float, float] | None = None
    """The range that it can take, as a bracket."""

    @property
    def value(self) -> float:
        """Where it stands: of an undefined figure at 0."""
        return float(self.figure.value or 0.0)

    @property
    def ends(self) -> list[float]:
        """What the axis has to hold."""
        ends = [self.value, self.figure.low, self.figure.high, *(self.reach or ())]
        return [end for end in ends if end is not None]


@dataclass(frozen=True)
class Bar:
    """A stretch of the axis. said: what a pointer on it reads."""

    start: float
    end: float
    said: str
    colour: int


@dataclass(frozen=True)
class Track:
    """A line of a row with what lies on it; two points are joined."""

    points: tuple[Point, ...] = ()
    bars: tuple[Bar, ...] = ()

    @property
    def ends(self) -> list[float]:
        """What the axis has to hold."""
        return [end for point in self.points for end in point.ends] + [
            end for bar in self.bars for end in (bar.start, bar.end)
        ]


@dataclass(frozen=True)
class PlotRow:
    """One thing with its tracks. text: said at the right of its name."""

    name: str
    tracks: tuple[Track, ...]
    text: str = ""


@dataclass(frozen=True)
class RowPlot(AnyPlot):
    """Rows on one axis."""

    rows: Sequence[PlotRow]
    axis: tuple[float, float] | None = None
    """Its range, found if it is left out."""
    rule: tuple[float, str] | None = None
    """A value that all are held against, and its name."""
    better: Literal["", "left", "right"] = ""
    """The side of it that is tinted."""
    unit: str = ""
    """Said below the axis."""
    number: NumberFormat = decimal
    ticks: int = 5
    least_span: float = 0.0
    """How far the axis reaches at least, so that what hardly differs does not look different."""
    include: tuple[float, ...] = ()
    """Values that the axis has to hold."""

    def svg(self) -> Markup:
        """The plot; "" if no row has a track."""
        rows = [row for row in self.rows if row.tracks]
        if not rows:
            return Markup()
        scale = Scale(*self._range(rows), LEFT, RIGHT)
        parts, y = [], float(self.top)
        for row in rows:
            parts.append(self._name(row, y))
            y += NAME
            for track in row.tracks:
                parts.append(draw_track(track, scale, y + STEP / 2))
                y += STEP
            y += GAP
        foot = FOOT + (14 if self.unit else 0)
        return self.drawing(WIDTH, round(y + foot), [*self._axis(scale, y), *parts])

    @property
    def top(self) -> int:
        """Where the rows begin, below the rule's name."""
        return 8 + (RULE_NAME if self.rule else 0)

    def _range(self, rows: list[PlotRow]) -> tuple[float, float]:
        if self.axis is not None:
            return self.axis
        ends = [end for row in rows for track in row.tracks for end in track.ends]
        include = [*self.include, *([self.rule[0]] if self.rule else [])]
        low, high = min([*ends, *include]), max([*ends, *include])
        if high - low < self.least_span:
            ends += [(low + high - self.least_span) / 2, (low + high + self.least_span) / 2]
        return nice_range(ends, include=tuple(include)) or (0.0, 1.0)

    def _axis(self, scale: Scale, bottom: float) -> list[str]:
        parts, top = [], self.top
        if self.rule is not None and self.better:
            at = scale(self.rule[0])
            left, right = (LEFT, at) if self.better == "left" else (at, RIGHT)
            parts.append(box(left, top - 4, max(right - left, 0), bottom - top + 4, style="faster"))
        for tick in roomy_ticks(scale, self.number, self.ticks):
            parts.append(line(scale(tick), top - 4, scale(tick), bottom, "grid"))
            parts.append(tick_label(scale(tick), bottom + 15, self.number(tick), (0, WIDTH)))
        if self.unit:
            parts.append(label(RIGHT, bottom + 29, self.unit, anchor="end"))
        if self.rule is not None:
            at = scale(self.rule[0])
            parts.append(line(at, top - 6, at, bottom, "rule"))
            side, nudge = ("start", 3) if at < (LEFT + RIGHT) / 2 else ("end", -3)
            parts.append(label(at + nudge, top - 10, self.rule[1], anchor=side, style="rule-name"))
        return parts

    def _name(self, row: PlotRow, top: float) -> str:
        # A halo in the paper's colour would show on the tinted side.
        halo = "" if self.better else " halo"
        named = label(LEFT, top + 12, shortened(row.name, LONGEST - len(row.text)), style=f"row{halo}")
        if not row.text:
            return named
        return named + label(RIGHT, top + 12, row.text, anchor="end", style=f"value{halo}")


def draw_track(track: Track, scale: Scale, y: float) -> str:
    """The track's line, its bars, and its points with their intervals."""
    parts = [] if track.bars else [line(scale.start, y, scale.end, y, "track")]
    parts += [draw_bar(bar, scale, y) for bar in track.bars]
    if len(track.points) > 1:
        first, *_, last = track.points
        parts.append(line(scale(first.value), y, scale(last.value), y, "gap-line"))
    return "".join(parts + [draw_point(point, scale, y) for point in track.points])


def draw_bar(bar: Bar, scale: Scale, y: float) -> str:
    """A bar, cut at the ends of the axis."""
    left, right = sorted(scale(min(max(end, scale.low), scale.high)) for end in (bar.start, bar.end))
    drawn = box(left, y - BAR / 2, max(right - left, 1.0), BAR, said=bar.said)
    return f'<g class="s{bar.colour}">{drawn}</g>'


def draw_point(point: Point, scale: Scale, y: float) -> str:
    """Bracket, interval and marker."""
    parts = []
    if point.reach is not None:
        parts.append(line(scale(point.reach[0]), y, scale(point.reach[1]), y, "reach"))
        parts += [line(scale(end), y - 4, scale(end), y + 4, "reach-end") for end in point.reach]
    low, high = point.figure.low, point.figure.high
    if low is not None and high is not None and high > low:
        parts.append(line(scale(low), y, scale(high), y, f"interval s{point.colour or 0}"))
    drawn = marker(scale(point.value), y, point.shape, point.said, 3.8)
    group = "whole" if point.colour is None else f"s{point.colour}"
    return "".join(parts) + f'<g class="{group}">{drawn}</g>'


def roomy_ticks(scale: Scale, number: NumberFormat, most: int = 5) -> list[float]:
    """As many ticks, up to about so many, as have room for their labels side by side."""
    for count in range(most, 1, -1):
        ticks = scale.ticks(count)
        widest = max((len(number(tick)) for tick in ticks), default=0) * ROW_LETTER
        # Labels at the ends stand inside the plot, half a label nearer to their neighbour.
        if len(ticks) < 2 or abs(scale(ticks[1]) - scale(ticks[0])) >= 1.5 * widest + 3:
            return ticks
    return [scale.low, scale.high]


def shortened(name: str, longest: int) -> str:
    """A name cut in its middle where it would leave the drawing; its whole is in the points and the table."""
    if len(name) <= longest:
        return name
    half = (longest - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
