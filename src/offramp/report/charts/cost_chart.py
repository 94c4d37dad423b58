"""Horizontal bars in units of one layer: what each part of a decoding step costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offramp.report.charts.drawing import drawing, label, line
from offramp.report.charts.scale import Scale, nice_range
from offramp.report.markup import element, text

WIDTH = 360
LEFT, RIGHT = 8, 352
TOP, ROW, FOOT = 18, 34, 26


@dataclass(frozen=True)
class CostRow:
    """One part. layers: its cost, one layer = 1. colour: 0 to 5."""

    name: str
    text: str
    layers: float
    colour: int


def cost_svg(title: str, description: str, rows: Sequence[CostRow]) -> str:
    """The bars on one axis that starts at nothing; one layer is marked across all of them."""
    bottom = TOP + ROW * len(rows)
    found = nice_range([row.layers for row in rows], include=(0.0, 1.0))
    scale = Scale(*(found or (0.0, 1.0)), LEFT, RIGHT)
    parts = []
    for tick in scale.ticks(6):
        anchor = "start" if scale(tick) < LEFT + 8 else "end" if scale(tick) > RIGHT - 8 else "middle"
        parts.append(line(scale(tick), TOP, scale(tick), bottom, "grid"))
        parts.append(label(scale(tick), bottom + 15, f"{tick:g}", anchor=anchor))
    parts.append(line(scale(1.0), TOP - 4, scale(1.0), bottom, "rule"))
    parts.append(label(scale(1.0) + 3, TOP - 6, "one layer", style="rule-name"))
    parts += [draw_row(row, scale, TOP + ROW * place) for place, row in enumerate(rows)]
    return drawing(WIDTH, bottom + FOOT, title, description, "".join(parts), style="wide")


def draw_row(row: CostRow, scale: Scale, top: float) -> str:
    """Label, number and bar of one part."""
    width = max(scale(row.layers) - LEFT, 1.0)
    title = element("title", text(f"{row.name}: {row.text}"))
    bar = f'<rect x="{LEFT}" y="{top + 19:.1f}" width="{width:.1f}" height="9" rx="1.5">{title}</rect>'
    return (
        label(LEFT, top + 14, row.name, style="row halo")
        + label(RIGHT, top + 14, row.text, anchor="end", style="value halo")
        + f'<g class="s{row.colour}">{bar}</g>'
    )
