"""What plots and passages are drawn with: colours, axes, text, lines, boxes, markers, legends.

OKLCH to sRGB after Björn Ottosson, "A perceptual color space for image processing" (2020)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING

from markupsafe import Markup

from offramp.report.html import Kind, escaped, fragment

if TYPE_CHECKING:
    from offramp.report.plots import AnyPlot


@dataclass(frozen=True)
class Ramp:
    """A ramp in OKLCH between two ends (lightness, chroma, hue in degrees); lightness is monotone."""

    start: tuple[float, float, float]
    end: tuple[float, float, float]

    def colour(self, position: float) -> str:
        """The colour at a position in [0, 1] as #rrggbb."""
        lightness, chroma, hue = (a + (b - a) * position for a, b in zip(self.start, self.end, strict=True))
        return hexadecimal(oklch_to_rgb(lightness, chroma, hue))


# Position 0 is the first layer, 1 the last: an early exit stands out from the page, a late one recedes.
LIGHT_RAMP = Ramp(start=(0.36, 0.13, 268.0), end=(0.955, 0.05, 95.0))
DARK_RAMP = Ramp(start=(0.92, 0.13, 98.0), end=(0.33, 0.06, 262.0))


def oklch_to_rgb(lightness: float, chroma: float, hue: float) -> tuple[float, float, float]:
    """OKLCH to sRGB in [0, 1], clipped to the gamut."""
    a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
    long = (lightness + 0.3963377774 * a + 0.2158037573 * b) ** 3
    medium = (lightness - 0.1055613458 * a - 0.0638541728 * b) ** 3
    short = (lightness - 0.0894841775 * a - 1.2914855480 * b) ** 3
    red = 4.0767416621 * long - 3.3077115913 * medium + 0.2309699292 * short
    green = -1.2684380046 * long + 2.6097574011 * medium - 0.3413193965 * short
    blue = -0.0041960863 * long - 0.7034186147 * medium + 1.7076147010 * short
    return gamma(red), gamma(green), gamma(blue)


def gamma(linear: float) -> float:
    """One linear channel to sRGB (IEC 61966-2-1), clipped to [0, 1]."""
    linear = min(max(linear, 0.0), 1.0)
    return 12.92 * linear if linear <= 0.0031308 else 1.055 * linear ** (1 / 2.4) - 0.055


def hexadecimal(rgb: tuple[float, float, float]) -> str:
    """sRGB in [0, 1] as #rrggbb."""
    return "#" + "".join(f"{round(255 * channel):02x}" for channel in rgb)


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2)."""
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    """Contrast ratio of two colours, 1 to 21 (WCAG 2)."""
    high, low = sorted((luminance(first), luminance(second)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def readable_on(background: str) -> str:
    """Black or white, whichever is easier to read on the background."""
    return max(("#000000", "#ffffff"), key=lambda ink: contrast(ink, background))


def ramp_rules(layers: int) -> str:
    """CSS classes e1..eL that colour a token or a bar by the layer it could stop at, in both themes."""
    return (
        theme_rules(LIGHT_RAMP, layers)
        + "@media screen and (prefers-color-scheme:dark){"
        + theme_rules(DARK_RAMP, layers)
        + "}"
    )


def theme_rules(ramp: Ramp, layers: int) -> str:
    """The classes of one theme."""
    rules = []
    for layer in range(1, layers + 1):
        colour = ramp.colour((layer - 1) / max(layers - 1, 1))
        rules.append(f".e{layer}{{background:{colour};color:{readable_on(colour)};fill:{colour}}}")
    return "".join(rules)


@dataclass(frozen=True)
class Scale:
    """Maps low..high of the data to start..end in pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def holds(self, value: float) -> bool:
        """Whether a value lies within the axis."""
        return self.low <= value <= self.high

    def ticks(self, count: int = 5) -> list[float]:
        """Round numbers within the range, about `count` of them."""
        return nice_ticks(self.low, self.high, count)


class LogScale(Scale):
    """The same by the logarithm of the data; what lies below the range stands at its lower end."""

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        low, at, high = (math.log10(max(value, self.low)) for value in (self.low, value, self.high))
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int = 5) -> list[float]:
        """1, 2 and 5 times powers of ten within the range, or its ends where these are fewer than two."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        ticks = [factor * 10.0**power for power in powers for factor in (1, 2, 5)]
        within = [tick for tick in ticks if self.holds(tick)]
        return within if len(within) > 1 else [self.low, self.high]


def nice_step(span: float, count: int) -> float:
    """The step of 1, 2 or 5 times a power of ten that comes nearest to `count` ticks over a span."""
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    return power * min((1, 2, 5, 10), key=lambda factor: abs(math.log(factor * power / raw)))


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of a round step within [low, high]."""
    step = nice_step(high - low, count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def nice_range(values: Iterable[float], *, include: tuple[float, ...] = ()) -> tuple[float, float] | None:
    """A range that holds every finite value and ends at round numbers; None if no value is finite.

    Where there is but one value it stands in the middle, or at the lower end if `include` names it: shares
    that are all 0 get no axis below 0.
    """
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    low, high = min([*finite, *include]), max([*finite, *include])
    if high - low < 1e-9:
        margin = 0.1 * abs(low) or 0.1
        low, high = low if low in include else low - margin, high + margin
    step = nice_step(high - low, 5)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step


SERIES_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "12 4")
SERIES_COUNT = len(SERIES_DASHES)
LETTER = 6.0
"""About what one sign of a label takes, in pixels of a drawing."""


def drawing(
    width: int, height: float, title: str, description: str, content: str, *, style: str = ""
) -> Markup:
    """An SVG that scales with the page and says what it shows to a screen reader. content: SVG already."""
    name = escape(title)
    return Markup(
        f'<svg class="chart {style}" viewBox="0 0 {width} {height:g}" role="img" aria-label="{name}">'
        f"<title>{name}</title><desc>{escape(description)}</desc>{content}</svg>"
    )


def label(x: float, y: float, content: str, *, anchor: str = "start", style: str = "") -> str:
    """A text; anchor is "start", "middle" or "end"."""
    marks = "" if anchor == "start" else f' text-anchor="{anchor}"'
    marks += f' class="{style}"' if style else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{marks}>{escaped(content)}</text>'


def tick_label(x: float, y: float, content: str, within: tuple[float, float]) -> str:
    """The label of a tick, in the middle below it unless it would leave the drawing to a side."""
    half = LETTER * len(content) / 2
    anchor = "start" if x - half < within[0] else "end" if x + half > within[1] else "middle"
    return label(x, y, content, anchor=anchor)


def line(x1: float, y1: float, x2: float, y2: float, style: str, *, said: str = "") -> str:
    """A straight line. said: what a pointer on it reads."""
    shape = f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f"{shape}><title>{escaped(said)}</title></line>" if said else f"{shape}/>"


def path(points: Sequence[tuple[float, float]], *, dash: str = "", style: str = "line") -> str:
    """A polyline in the current colour."""
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path class="{style}" d="M{steps}"{dashes}/>'


def box(left: float, top: float, width: float, height: float, *, style: str = "", said: str = "") -> str:
    """A rectangle. said: what a pointer on it reads."""
    named = f'class="{style}" ' if style else ""
    down, wide, high = (f"{value:.1f}".removesuffix(".0") for value in (top, width, height))
    shape = f'<rect {named}x="{left:.1f}" y="{down}" width="{wide}" height="{high}"'
    return f"{shape}><title>{escaped(said)}</title></rect>" if said else f"{shape}/>"


def marker(x: float, y: float, shape: int, title: str = "", size: float = 3.2) -> str:
    """A marker in the current colour: disc, square, triangle, diamond, ring, bar."""
    match shape % SERIES_COUNT:
        case 0:
            body = f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"'
        case 1:
            body = (
                f'<rect x="{x - size:.1f}" y="{y - size:.1f}" width="{2 * size:.1f}" height="{2 * size:.1f}"'
            )
        case 2:
            top, base = y - 1.2 * size, y + size
            body = f'<path d="M{x:.1f} {top:.1f}L{x + 1.2 * size:.1f} {base:.1f}H{x - 1.2 * size:.1f}Z"'
        case 3:
            reach = 1.35 * size
            turns = "".join(f"l{a * reach:.1f} {b * reach:.1f}" for a, b in ((1, 1), (-1, 1), (-1, -1)))
            body = f'<path d="M{x:.1f} {y - reach:.1f}{turns}Z"'
        case 4:
            body = f'<circle class="hollow" cx="{x:.1f}" cy="{y:.1f}" r="{size:.1f}"'
        case _:
            body = f'<rect x="{x - 1:.1f}" y="{y - size - 1:.1f}" width="2" height="{2 * size + 2:.1f}"'
    name = body[1:].split(" ", 1)[0]
    return f"{body}><title>{escaped(title)}</title></{name}>" if title else f"{body}/>"


def drawn(
    chart: AnyPlot,
    data: str,
    *,
    title: str = "",
    note: str = "",
    below: str = "",
    legend: str = "",
    kind: Kind | None = None,
) -> Markup:
    """A chart as a figure of a page: title, note, legend, drawing, and the same numbers as a table.

    title, note: in the place of the chart's own. below: HTML under the drawing.
    """
    content = chart.svg() + below
    return figure(title or chart.title, note or chart.description, content, data, legend=legend, kind=kind)


def figure(
    title: str, note: str, content: str, data: str, *, legend: str = "", kind: Kind | None = None
) -> Markup:
    """Drawings as one figure of a page. content, data: HTML."""
    return fragment("macros", "figure", title, note, content, data, legend, kind)


@dataclass(frozen=True)
class Key:
    """An entry of a legend. shape: dash and marker of the line it names, None for a patch of colour."""

    name: str
    colour: int
    shape: int | None = 0

    @property
    def swatch(self) -> Markup:
        """A piece of the line that the entry names; nothing of a patch."""
        if self.shape is None:
            return Markup()
        dash = SERIES_DASHES[self.shape % SERIES_COUNT]
        return Markup(path([(1, 6), (29, 6)], dash=dash) + marker(15, 6, self.shape))


def legend(keys: Sequence[Key], *, lines: bool = False) -> Markup:
    """A legend as a list. lines: the page's script makes each entry a button that dims its line."""
    return fragment("macros", "legend", keys, lines)
