"""One curve of several models (or texts) over depth, overlaid; the page's script dims what is not chosen."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.report.charts.drawing import SERIES_COUNT, SERIES_DASHES, drawing, label, line, marker, path
from offramp.report.charts.line_chart import band_between, finite_runs, thinned
from offramp.report.charts.scale import Scale, nice_range
from offramp.report.formats import NumberFormat, decimal
from offramp.report.markup import attributes, element, text

WIDTH, HEIGHT = 620, 360
LEFT, RIGHT, TOP, FOOT = 72, 606, 40, 60
MARKERS = 6
BANDS = 4
"""Intervals are drawn for so many lines at most; more bands hide each other."""

Curve = NDArray[np.float64]


@dataclass(frozen=True)
class Profile:
    """One line: x is the depth in [0, 1], float64 [exits]; NaN in y breaks it. low, high: its interval."""

    name: str
    x: Curve
    y: Curve
    low: Curve | None = None
    high: Curve | None = None


@dataclass(frozen=True)
class ProfileChart:
    """Lines on one plot, in the order of their names' colours."""

    title: str
    description: str
    y_label: str
    profiles: tuple[Profile, ...]
    y_range: tuple[float, float] | None = None
    number: NumberFormat = decimal

    def svg(self) -> str:
        """The chart; "" if no point is finite."""
        y_range = self.y_range or self._found_range()
        if y_range is None or not any(np.isfinite(profile.y).any() for profile in self.profiles):
            return ""
        x, y = Scale(0.0, 1.0, LEFT, RIGHT), Scale(*y_range, HEIGHT - FOOT, TOP)
        banded = len(self.profiles) <= BANDS
        content = self._axes(x, y)
        for place, profile in enumerate(self.profiles):
            band = _band(profile, x, y) if banded else ""
            content += (
                f'<g class="s{place % SERIES_COUNT} profile"{attributes({"data_line": profile.name})}>'
                f"{band}{self._line(profile, place, x, y)}</g>"
            )
        return drawing(WIDTH, HEIGHT, self.title, self.description, content, style="profile-chart")

    def legend(self) -> str:
        """The lines by name, each with a swatch; the script makes each a button that dims its line."""
        items = []
        for place, profile in enumerate(self.profiles):
            swatch = (
                f'<svg class="swatch s{place % SERIES_COUNT}" viewBox="0 0 30 12" aria-hidden="true">'
                f"{path([(1, 6), (29, 6)], dash=dash_of(place))}{marker(15, 6, shape_of(place))}</svg>"
            )
            items.append(element("li", swatch + text(profile.name), data_line=profile.name))
        return element("ul", "".join(items), class_="legend lines")

    def _found_range(self) -> tuple[float, float] | None:
        values = [float(v) for profile in self.profiles for v in profile.y]
        return nice_range(values, include=(0.0,))

    def _axes(self, x: Scale, y: Scale) -> str:
        bottom = y.start
        parts = [label(4, 18, self.y_label, style="name")]
        for tick in y.ticks(5):
            parts.append(line(LEFT, y(tick), RIGHT, y(tick), "grid"))
            parts.append(label(LEFT - 7, y(tick) + 5, self.number(tick), anchor="end"))
        for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
            parts.append(line(x(tick), bottom, x(tick), bottom + 4, "axis"))
            anchor = "end" if tick == 1.0 else "middle"
            parts.append(label(x(tick), bottom + 24, f"{100 * tick:.0f} %", anchor=anchor))
        parts.append(line(LEFT, bottom, RIGHT, bottom, "axis"))
        name = "depth: share of the layers' work done"
        parts.append(label((LEFT + RIGHT) / 2, HEIGHT - 8, name, anchor="middle", style="name"))
        return "".join(parts)

    def _line(self, profile: Profile, place: int, x: Scale, y: Scale) -> str:
        parts, points = [], []
        for run in finite_runs(profile.x, profile.y):
            pixels = thinned([(x(float(profile.x[i])), y(float(profile.y[i]))) for i in run])
            parts.append(path(pixels, dash=dash_of(place)))
            points.extend(run)
        every = max(1, math.ceil(len(points) / MARKERS))
        # Lines of one stretch would put their markers on top of each other.
        for i in points[(place % every) :: every]:
            parts.append(
                marker(x(float(profile.x[i])), y(float(profile.y[i])), shape_of(place), profile.name, 4.0)
            )
        return "".join(parts)


def shape_of(place: int) -> int:
    """Marker and dash of a line: the first six differ in colour and shape, later ones in the pair of them."""
    return (place + place // SERIES_COUNT) % SERIES_COUNT


def dash_of(place: int) -> str:
    """The dash of a line."""
    return SERIES_DASHES[shape_of(place)]


def _band(profile: Profile, x: Scale, y: Scale) -> str:
    """The interval of a line."""
    if profile.low is None or profile.high is None:
        return ""
    return band_between(profile.x, profile.low, profile.high, x, y)
