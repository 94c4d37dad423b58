"""Predicted beside measured time per token, one row a policy, with plain decoding as the line to beat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offramp.report.charts.drawing import drawing, label, line, marker
from offramp.report.charts.plain_axis import FOOT, LEFT, RIGHT, ROW, TOP, WIDTH, plain_axis
from offramp.report.charts.scale import Scale, nice_range
from offramp.report.formats import decimal

MEASURED, PREDICTED = 0, 1


@dataclass(frozen=True)
class BesideRow:
    """One policy, in milliseconds per token. predicted: None without a prediction. text: the two in words."""

    name: str
    text: str
    measured: float
    low: float | None = None
    high: float | None = None
    predicted: float | None = None


def beside_svg(title: str, description: str, rows: Sequence[BesideRow], plain: float) -> str:
    """The rows on one axis of milliseconds; left of plain decoding is faster. plain: its milliseconds."""
    ends = [end for row in rows for end in (row.measured, row.low, row.high, row.predicted)]
    found = nice_range([end for end in ends if end is not None], include=(plain,))
    scale = Scale(*(found or (0.0, 2 * plain)), LEFT, RIGHT)
    name = f"plain decoding {decimal(plain, 1)} ms"
    parts = plain_axis(scale, plain, len(rows), name=name, unit="ms per token", faster="left")
    parts += [draw_row(row, scale, TOP + ROW * place) for place, row in enumerate(rows)]
    return drawing(WIDTH, TOP + ROW * len(rows) + FOOT, title, description, "".join(parts), style="wide")


def draw_row(row: BesideRow, scale: Scale, top: float) -> str:
    """Label, numbers, and the way from the prediction to the measurement."""
    y = top + 26
    parts = [
        label(LEFT, top + 14, row.name, style="row halo"),
        label(RIGHT, top + 14, row.text, anchor="end", style="value halo"),
        line(LEFT, y, RIGHT, y, "track"),
    ]
    if row.predicted is not None:
        parts.append(line(scale(row.predicted), y, scale(row.measured), y, "gap-line"))
    if row.low is not None and row.high is not None:
        parts.append(line(scale(row.low), y, scale(row.high), y, f"interval s{MEASURED}"))
    dot = marker(scale(row.measured), y, 0, f"{row.name}, measured: {decimal(row.measured, 2)} ms", 4.5)
    parts.append(f'<g class="s{MEASURED}">{dot}</g>')
    if row.predicted is not None:
        said = f"{row.name}, predicted: {decimal(row.predicted, 2)} ms"
        parts.append(f'<g class="s{PREDICTED}">{marker(scale(row.predicted), y, 3, said, 4.2)}</g>')
    return "".join(parts)
