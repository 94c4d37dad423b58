"""Intervals as dots: a row for each thing compared, in it one dot with its interval a text or floor."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.report.charts.drawing import drawing, label, line, marker
from offramp.report.charts.scale import Scale, nice_range
from offramp.report.formats import NumberFormat, decimal, interval_text

WIDTH = 360
LEFT, RIGHT = 10, 350
TOP, NAME, STEP, GAP, FOOT = 24, 17, 11, 7, 22
LONGEST_NAME, LETTER = 44, 6.3
"""Signs that a row has room for, and about what one takes, in pixels of the drawing."""


@dataclass(frozen=True)
class Dot:
    """One value. name: what it stands for, as in the legend. hollow: not sure, or not certified.

    floor, ceiling: the range that the figure can reach, drawn as a thin bracket.
    """

    name: str
    value: float
    low: float | None = None
    high: float | None = None
    colour: int = 0
    hollow: bool = False
    floor: float | None = None
    ceiling: float | None = None


@dataclass(frozen=True)
class DotRow:
    """One thing with its dots; text: said at the right of its name."""

    name: str
    dots: tuple[Dot, ...]
    text: str = ""


@dataclass(frozen=True)
class DotsChart:
    """Rows on one axis, which is found if it is left out.

    rule: a value that all are held against, and its name. better: whether what lies right of it is tinted.
    least_span: how far the axis reaches at least, so that what hardly differs does not look different.
    """

    title: str
    description: str
    rows: tuple[DotRow, ...]
    axis: tuple[float, float] | None = None
    rule: tuple[float, str] | None = None
    better: bool = False
    least_span: float = 0.0
    number: NumberFormat = decimal
    tick: NumberFormat | None = None

    def svg(self) -> str:
        """The chart; "" if no row has a dot."""
        rows = [row for row in self.rows if row.dots]
        if not rows:
            return ""
        scale = Scale(*self._range(rows), LEFT, RIGHT)
        tops, y = [], float(TOP)
        for row in rows:
            tops.append(y)
            y += NAME + STEP * len(row.dots) + GAP
        parts = self._axis(scale, y)
        for row, top in zip(rows, tops, strict=True):
            parts.append(self._row(row, scale, top))
        return drawing(WIDTH, round(y + FOOT), self.title, self.description, "".join(parts))

    def _range(self, rows: list[DotRow]) -> tuple[float, float]:
        if self.axis is not None:
            return self.axis
        ends = [
            end
            for row in rows
            for dot in row.dots
            for end in (dot.value, dot.low, dot.high, dot.floor, dot.ceiling)
            if end is not None
        ]
        include = [self.rule[0]] if self.rule else []
        middle = (min([*ends, *include]) + max([*ends, *include])) / 2
        if max([*ends, *include]) - min([*ends, *include]) < self.least_span:
            ends += [middle - self.least_span / 2, middle + self.least_span / 2]
        return nice_range(ends, include=tuple(include)) or (0.0, 1.0)

    def _axis(self, scale: Scale, bottom: float) -> list[str]:
        parts = []
        tick_format = self.tick or self.number
        if self.rule is not None and self.better:
            at = scale(self.rule[0])
            parts.append(
                f'<rect class="faster" x="{at:.1f}" y="{TOP - 4}" width="{max(RIGHT - at, 0):.1f}" '
                f'height="{bottom - TOP + 4:.1f}"/>'
            )
        for tick in roomy_ticks(scale, tick_format):
            place = scale(tick)
            anchor = "start" if place < LEFT + 10 else "end" if place > RIGHT - 10 else "middle"
            parts.append(line(place, TOP - 4, place, bottom, "grid"))
            parts.append(label(place, bottom + 15, tick_format(tick), anchor=anchor))
        if self.rule is not None:
            at = scale(self.rule[0])
            parts.append(line(at, TOP - 6, at, bottom, "rule"))
            side, nudge = ("start", 3) if at < (LEFT + RIGHT) / 2 else ("end", -3)
            parts.append(label(at + nudge, TOP - 10, self.rule[1], anchor=side, style="rule-name"))
        return parts

    def _row(self, row: DotRow, scale: Scale, top: float) -> str:
        # A halo in the paper's colour would show on the tinted side.
        halo = "" if self.better else " halo"
        name = shortened(row.name, LONGEST_NAME - len(row.text))
        parts = [label(LEFT + 4, top + 11, name, style=f"row{halo}")]
        if row.text:
            parts.append(label(RIGHT, top + 11, row.text, anchor="end", style=f"value{halo}"))
        for place, dot in enumerate(row.dots):
            parts.append(self._dot(row, dot, scale, top + NAME + STEP * (place + 0.5)))
        return "".join(parts)

    def _dot(self, row: DotRow, dot: Dot, scale: Scale, y: float) -> str:
        parts = [line(LEFT, y, RIGHT, y, "track")]
        if dot.floor is not None and dot.ceiling is not None:
            parts.append(line(scale(dot.floor), y, scale(dot.ceiling), y, "reach"))
            parts += [
                line(scale(end), y - 3, scale(end), y + 3, "reach-end") for end in (dot.floor, dot.ceiling)
            ]
        if dot.low is not None and dot.high is not None and dot.high > dot.low:
            parts.append(line(scale(dot.low), y, scale(dot.high), y, f"interval s{dot.colour}"))
        limits = interval_text(dot.low, dot.high, self.number)
        said = f"{row.name}, {dot.name}: {self.number(dot.value)}{f' ({limits})' if limits else ''}"
        shape = 4 if dot.hollow else 0
        parts.append(f'<g class="s{dot.colour}">{marker(scale(dot.value), y, shape, said, 3.4)}</g>')
        return "".join(parts)


def roomy_ticks(scale: Scale, number: NumberFormat) -> list[float]:
    """As many ticks, up to about five, as have room for their labels side by side."""
    for count in (5, 4, 3, 2):
        ticks = scale.ticks(count)
        widest = max((len(number(tick)) for tick in ticks), default=0) * LETTER
        # Labels at the ends stand inside the plot, half a label nearer to their neighbour.
        if len(ticks) < 2 or abs(scale(ticks[1]) - scale(ticks[0])) >= 1.5 * widest + 3:
            return ticks
    return [scale.low, scale.high]


def shortened(name: str, longest: int) -> str:
    """A name cut in its middle where it would leave the drawing; its whole is in the dots and the table."""
    if len(name) <= longest:
        return name
    half = (longest - 1) // 2
    return f"{name[:half]}…{name[-half:]}"
