"""A figure of models against one of their properties, with the line of the Theil-Sen estimate."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.report.charts.drawing import drawing, label, line, marker
from offramp.report.charts.scale import Scale, nice_range
from offramp.report.formats import NumberFormat, decimal

WIDTH, HEIGHT = 360, 230
LEFT, RIGHT, TOP, FOOT = 46, 348, 24, 40
LETTER, LINE_HEIGHT = 6.0, 12.0
"""About what one sign of a name takes, in pixels of the drawing."""


@dataclass(frozen=True)
class TrendChart:
    """Points (name, x, y), and the line y = intercept + slope x if there is one."""

    title: str
    description: str
    x_label: str
    y_label: str
    points: tuple[tuple[str, float, float], ...]
    slope: float | None = None
    intercept: float | None = None
    x_number: NumberFormat = "{:g}".format
    y_number: NumberFormat = decimal

    def svg(self) -> str:
        """The chart; "" without a point."""
        x_range = nice_range([x for _, x, _ in self.points])
        y_range = nice_range([y for _, _, y in self.points])
        if x_range is None or y_range is None:
            return ""
        x, y = Scale(*x_range, LEFT, RIGHT), Scale(*y_range, HEIGHT - FOOT, TOP)
        content = self._axes(x, y) + self._line(x, y)
        content += '<g class="s0">'
        for name, at, value in self.points:
            said = f"{name}: {self.y_number(value)} at {self.x_number(at)}"
            content += marker(x(at), y(value), 0, said, 3.6)
        content += "</g>" + self._names(x, y)
        return drawing(WIDTH, HEIGHT, self.title, self.description, content)

    def _axes(self, x: Scale, y: Scale) -> str:
        bottom = y.start
        parts = [label(4, 12, self.y_label, style="name")]
        for tick in y.ticks(5):
            parts.append(line(LEFT, y(tick), RIGHT, y(tick), "grid"))
            parts.append(label(LEFT - 6, y(tick) + 4, self.y_number(tick), anchor="end"))
        for tick in x.ticks(5):
            parts.append(line(x(tick), bottom, x(tick), bottom + 4, "axis"))
            anchor = "end" if x(tick) > RIGHT - 8 else "middle"
            parts.append(label(x(tick), bottom + 16, self.x_number(tick), anchor=anchor))
        parts.append(line(LEFT, bottom, RIGHT, bottom, "axis"))
        parts.append(label((LEFT + RIGHT) / 2, HEIGHT - 6, self.x_label, anchor="middle", style="name"))
        return "".join(parts)

    def _line(self, x: Scale, y: Scale) -> str:
        """The estimated line from the first to the last point, cut where it leaves the plot."""
        if self.slope is None or self.intercept is None:
            return ""
        ends = [min(at for _, at, _ in self.points), max(at for _, at, _ in self.points)]
        if self.slope:
            crossings = sorted((level - self.intercept) / self.slope for level in (y.low, y.high))
            ends = [min(max(end, crossings[0]), crossings[1]) for end in ends]
        heights = [self.intercept + self.slope * end for end in ends]
        if ends[0] >= ends[1] or not all(y.low - 1e-9 <= height <= y.high + 1e-9 for height in heights):
            return ""
        drawn = line(x(ends[0]), y(heights[0]), x(ends[1]), y(heights[1]), "trend")
        return f'<g class="s1">{drawn}</g>'

    def _names(self, x: Scale, y: Scale) -> str:
        """Names beside their points, where there is room for them."""
        taken = [(x(at) - 4, y(v) - 4, x(at) + 4, y(v) + 4) for _, at, v in self.points]
        parts = []
        for name, at, value in self.points:
            width = LETTER * len(name)
            for dx, dy, anchor in ((6, 4, "start"), (-6, 4, "end"), (0, -7, "middle"), (0, 15, "middle")):
                start = x(at) + dx - {"start": 0.0, "end": width, "middle": width / 2}[anchor]
                box = (start, y(value) + dy - LINE_HEIGHT + 2, start + width, y(value) + dy + 2)
                inside = box[0] >= LEFT and box[2] <= WIDTH and box[1] >= 14
                if inside and not any(_overlap(box, other) for other in taken):
                    taken.append(box)
                    parts.append(label(x(at) + dx, y(value) + dy, name, anchor=anchor, style="halo"))
                    break
        return "".join(parts)


def _overlap(one: tuple[float, float, float, float], other: tuple[float, float, float, float]) -> bool:
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
