"""Where a prediction was wrong: its error by part, too dear to the right, too cheap to the left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offramp.report.charts.drawing import drawing, label, line, marker
from offramp.report.charts.scale import Scale, nice_range
from offramp.report.formats import decimal
from offramp.report.markup import element, text

WIDTH = 360
LEFT, RIGHT = 8, 352
TOP, ROW, FOOT = 22, 40, 30


@dataclass(frozen=True)
class ErrorPart:
    """One part's error in milliseconds per token: predicted less measured. colour: 0 to 5."""

    name: str
    error: float
    colour: int


@dataclass(frozen=True)
class ErrorRow:
    """One policy's error by part. text: the whole error in words; total: in milliseconds per token."""

    name: str
    text: str
    parts: tuple[ErrorPart, ...]
    total: float | None


def error_svg(title: str, description: str, rows: Sequence[ErrorRow]) -> str:
    """Stacked bars around zero; a diamond marks the whole error."""
    bottom = TOP + ROW * len(rows)
    ends = [reach for row in rows for reach in reaches(row)]
    scale = Scale(*(nice_range(ends, include=(0.0,)) or (-1.0, 1.0)), LEFT, RIGHT)
    parts = []
    for tick in scale.ticks(6):
        anchor = "start" if scale(tick) < LEFT + 8 else "end" if scale(tick) > RIGHT - 8 else "middle"
        parts.append(line(scale(tick), TOP, scale(tick), bottom, "grid"))
        parts.append(label(scale(tick), bottom + 14, f"{tick:g}".replace("-", "−"), anchor=anchor))
    parts.append(label(RIGHT, bottom + 27, "predicted less measured, ms per token", anchor="end"))
    parts.append(line(scale(0.0), TOP - 4, scale(0.0), bottom, "rule"))
    anchor = "start" if scale(0.0) < (LEFT + RIGHT) / 2 else "end"
    nudge = 4 if anchor == "start" else -4
    parts.append(label(scale(0.0) + nudge, TOP - 8, "predicted rightly", anchor=anchor, style="rule-name"))
    parts += [draw_row(row, scale, TOP + ROW * place) for place, row in enumerate(rows)]
    return drawing(WIDTH, bottom + FOOT, title, description, "".join(parts), style="wide")


def reaches(row: ErrorRow) -> list[float]:
    """How far a row's bars reach to both sides, and its whole error."""
    errors = [part.error for part in row.parts]
    ends = [sum(e for e in errors if e < 0), sum(e for e in errors if e > 0)]
    return ends if row.total is None else [*ends, row.total]


def draw_row(row: ErrorRow, scale: Scale, top: float) -> str:
    """Label, the whole in words, the bars and the diamond."""
    y = top + 20
    drawn = [
        label(LEFT, top + 14, row.name, style="row halo"),
        label(RIGHT, top + 14, row.text, anchor="end", style="value halo"),
    ]
    below = above = 0.0
    for part in row.parts:
        start = above if part.error > 0 else below
        end = start + part.error
        if part.error > 0:
            above = end
        else:
            below = end
        left, right = sorted((scale(start), scale(end)))
        title = element("title", text(f"{part.name}: {decimal(part.error, 2)} ms"))
        box = f'x="{left:.1f}" y="{y}" width="{right - left:.1f}" height="11"'
        drawn.append(f'<g class="s{part.colour}"><rect {box}>{title}</rect></g>')
    if row.total is not None:
        said = f"{row.name}, whole error: {decimal(row.total, 2)} ms"
        drawn.append(f'<g class="whole">{marker(scale(row.total), y + 5.5, 3, said, 3.6)}</g>')
    return "".join(drawn)
