"""A plot of rows on one axis: points with their intervals and bars, a name and a number above them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from markupsafe import Markup

from offramp.report.formats import NumberFormat, decimal
from offramp.report.plot.drawing import Scale, box, drawing, label, line, marker, nice_range, tick_label
from offramp.scoring.estimate import Estimate

WIDTH, LEFT, RIGHT = 360, 10, 350
RULE_NAME, NAME, STEP, BAR, GAP, FOOT = 16, 18, 11, 11, 7, 22
LONGEST, LETTER = 49, 6.3
"""Signs that a row's name and number have room for, and about what one takes, in pixels of the drawing."""


@dataclass(frozen=True)
class Point:
    """One figure. said: what a pointer on it reads. reach: the range that it can take, as a bracket.

    colour: 0 to 5, None for that of the text. shape: as in `offramp.report.plot.drawing.marker`.
    """

    figure: Estimate
    said: str
    colour: int | None = 0
    shape: int = 0
    reach: tuple[float, float] | None = None

    @property
    def value(self) -> float:
        """Where it stands: of an undefined figure at 0."""
        return float(self.figure.value or 0.0)

    @property
    def ends(self) -> list[float]:
        """What the axis has to hold."""
        found = [self.value, self.figure.low, self.figure.high, *(self.reach or ())]
        return [end for end in found if end is not None]


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
        return [end for one in self.points for end in one.ends] + [
            end for bar in self.bars for end in (bar.start, bar.end)
        ]


@dataclass(frozen=True)
class Row:
    """One thing with its tracks. text: said at the right of its name."""

    name: str
    tracks: tuple[Track, ...]
    text: str = ""


@dataclass(frozen=True)
class RowPlot:
    """Rows on one axis, which is found if it is left out.

    rule: a value that all are held against, and its name. better: the side of it that is tinted. unit: said
    below the axis. least_span: how far the axis reaches at least, so that what hardly differs does not look
    different. include: values that the axis has to hold.
    """

    title: str
    description: str
    rows: Sequence[Row]
    axis: tuple[float, float] | None = None
    rule: tuple[float, str] | None = None
    better: Literal["", "left", "right"] = ""
    unit: str = ""
    number: NumberFormat = decimal
    ticks: int = 5
    least_span: float = 0.0
    include: tuple[float, ...] = ()
    style: str = ""

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
        content = "".join(self._axis(scale, y)) + "".join(parts)
        return drawing(WIDTH, round(y + foot), self.title, self.description, content, style=self.style)

    @property
    def top(self) -> int:
        """Where the rows begin, below the rule's name."""
        return 8 + (RULE_NAME if self.rule else 0)

    def _range(self, rows: list[Row]) -> tuple[float, float]:
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

    def _name(self, row: Row, top: float) -> str:
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


def draw_bar(bar: Bar, scale: Scale, y: float, style: str = "") -> str:
    """A bar, cut at the ends of the axis."""
    left, right = sorted(scale(min(max(end, scale.low), scale.high)) for end in (bar.start, bar.end))
    drawn = box(left, y - BAR / 2, max(right - left, 1.0), BAR, style=style, said=bar.said)
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
        widest = max((len(number(tick)) for tick in ticks), default=0) * LETTER
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
