"""A dot-and-interval chart: one row a figure, its label and number above its track."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.report.charts.drawing import drawing, label, line, marker
from offramp.report.charts.scale import Scale
from offramp.report.formats import NumberFormat, decimal

WIDTH = 360
LEFT, RIGHT = 8, 352
TOP, ROW, FOOT = 6, 36, 24


@dataclass(frozen=True)
class IntervalRow:
    """One figure. floor, ceiling: the range it can reach, drawn as a bracket. hollow: a published value.

    value None draws no dot; `text` then says so in words. emphasis: drawn in the second colour.
    """

    name: str
    text: str
    value: float | None
    low: float | None = None
    high: float | None = None
    floor: float | None = None
    ceiling: float | None = None
    hollow: bool = False
    emphasis: bool = False


@dataclass(frozen=True)
class IntervalChart:
    """Rows on one common axis."""

    title: str
    description: str
    rows: tuple[IntervalRow, ...]
    axis: tuple[float, float]
    number: NumberFormat = decimal

    def svg(self) -> str:
        """The chart."""
        height = TOP + ROW * len(self.rows) + FOOT
        scale = Scale(*self.axis, LEFT, RIGHT)
        bottom = TOP + ROW * len(self.rows)
        parts = []
        ticks = scale.ticks(5)
        for tick in ticks:
            parts.append(line(scale(tick), TOP, scale(tick), bottom, "grid"))
            anchor = "start" if scale(tick) < LEFT + 8 else "end" if scale(tick) > RIGHT - 8 else "middle"
            parts.append(label(scale(tick), bottom + 16, self.number(tick), anchor=anchor))
        parts += [draw_row(row, scale, TOP + ROW * i) for i, row in enumerate(self.rows)]
        return drawing(WIDTH, height, self.title, self.description, "".join(parts))


def draw_row(row: IntervalRow, scale: Scale, top: float) -> str:
    """Label, number and track of one row."""
    y = top + 25
    colour = "s1" if row.emphasis else "s0"
    parts = [
        label(LEFT, top + 13, row.name, style="row halo"),
        label(RIGHT, top + 13, row.text, anchor="end", style="value halo"),
        line(LEFT, y, RIGHT, y, "track"),
    ]
    if row.floor is not None and row.ceiling is not None:
        parts.append(line(scale(row.floor), y, scale(row.ceiling), y, "reach"))
        parts += [line(scale(end), y - 5, scale(end), y + 5, "reach-end") for end in (row.floor, row.ceiling)]
    if row.low is not None and row.high is not None:
        parts.append(line(scale(row.low), y, scale(row.high), y, f"interval {colour}"))
    if row.value is not None:
        shape = 4 if row.hollow else 3 if row.emphasis else 0
        dot = marker(scale(row.value), y, shape, f"{row.name}: {row.text}", 4.5)
        parts.append(f'<g class="{colour}">{dot}</g>')
    return "".join(parts)
