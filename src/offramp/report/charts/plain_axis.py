"""The axis of charts that hold rows against plain decoding: ticks, a line for plain, and the faster side."""

from __future__ import annotations

from typing import Literal

from offramp.report.charts.drawing import label, line
from offramp.report.charts.scale import Scale

WIDTH = 360
LEFT, RIGHT = 8, 352
TOP, ROW, FOOT = 22, 38, 30


def plain_axis(
    scale: Scale, plain: float, rows: int, *, name: str, unit: str, faster: Literal["left", "right"]
) -> list[str]:
    """What lies behind so many rows. plain: plain decoding on the scale. faster: the side that is tinted."""
    bottom, at = TOP + ROW * rows, scale(plain)
    x, width = (f"{LEFT}", at - LEFT) if faster == "left" else (f"{at:.1f}", RIGHT - at)
    parts = [f'<rect class="faster" x="{x}" y="{TOP}" width="{width:.1f}" height="{bottom - TOP}"/>']
    for tick in scale.ticks(6):
        place = scale(tick)
        anchor = "start" if place < LEFT + 8 else "end" if place > RIGHT - 8 else "middle"
        parts.append(line(place, TOP, place, bottom, "grid"))
        parts.append(label(place, bottom + 14, f"{tick:g}", anchor=anchor))
    parts.append(label(RIGHT, bottom + 27, unit, anchor="end"))
    parts.append(line(at, TOP - 4, at, bottom, "rule"))
    side, nudge = ("start", 4) if at < (LEFT + RIGHT) / 2 else ("end", -4)
    parts.append(label(at + nudge, TOP - 8, name, anchor=side, style="rule-name"))
    return parts
