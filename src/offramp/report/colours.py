"""Colours computed in code: a ramp of even lightness steps that colour-blind readers can order.

OKLCH to sRGB after Björn Ottosson, "A perceptual color space for image processing" (2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass


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
