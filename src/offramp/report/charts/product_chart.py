"""Measured speed beside the product of single gains, one row a combination, with plain decoding as 1."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offramp.decoding.measurement.results import Interval
from offramp.report.charts.drawing import drawing, label, line, marker
from offramp.report.charts.plain_axis import FOOT, LEFT, RIGHT, ROW, TOP, WIDTH, plain_axis
from offramp.report.charts.scale import Scale, nice_range
from offramp.report.formats import decimal

MEASURED, PRODUCT = 0, 1
APART = 4
"""How far measured and product lie above and below the middle of a row's track."""


@dataclass(frozen=True)
class ProductRow:
    """One combination, in speed over plain decoding. product: None for a single part. text: in words."""

    name: str
    text: str
    measured: Interval
    product: Interval | None = None


def product_svg(title: str, description: str, rows: Sequence[ProductRow]) -> str:
    """The rows on one axis of speed; right of 1 is faster than plain decoding."""
    found = [interval for row in rows for interval in (row.measured, row.product) if interval is not None]
    ends = [end for one in found for end in (one.value, one.low, one.high) if end is not None]
    scale = Scale(*(nice_range(ends, include=(1.0,)) or (0.5, 1.5)), LEFT, RIGHT)
    unit = "× the speed of plain decoding"
    parts = plain_axis(scale, 1.0, len(rows), name="plain decoding", unit=unit, faster="right")
    parts += [_row(row, scale, TOP + ROW * place) for place, row in enumerate(rows)]
    return drawing(WIDTH, TOP + ROW * len(rows) + FOOT, title, description, "".join(parts), style="wide")


def _row(row: ProductRow, scale: Scale, top: float) -> str:
    """Label, numbers, and the two points with their intervals."""
    y = top + 27
    parts = [
        label(LEFT, top + 14, row.name, style="row halo"),
        label(RIGHT, top + 14, row.text, anchor="end", style="value halo"),
        line(LEFT, y, RIGHT, y, "track"),
    ]
    if row.product is not None:
        parts.append(
            _point(row.product, scale, y + APART, PRODUCT, 3, f"{row.name}, product of single gains")
        )
    above = y if row.product is None else y - APART
    parts.append(_point(row.measured, scale, above, MEASURED, 0, f"{row.name}, measured"))
    return "".join(parts)


def _point(found: Interval, scale: Scale, y: float, colour: int, shape: int, name: str) -> str:
    band = ""
    if found.low is not None and found.high is not None:
        band = line(scale(found.low), y, scale(found.high), y, f"interval s{colour}")
    dot = marker(scale(found.value), y, shape, f"{name}: {decimal(found.value)} ×", 3.8)
    return f'{band}<g class="s{colour}">{dot}</g>'
