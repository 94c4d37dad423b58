"""SVG building blocks: the drawing itself, text, lines, boxes, markers, legends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from markupsafe import Markup

from offramp.report.html import escaped, fragment

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


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line."""
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


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
