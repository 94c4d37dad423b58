"""SVG building blocks: the drawing itself, text, lines, boxes, markers, legends."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from offramp.report.markup import element, text

SERIES_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "12 4")
SERIES_COUNT = len(SERIES_DASHES)
LETTER = 6.0
"""About what one sign of a label takes, in pixels of a drawing."""


def drawing(width: int, height: float, title: str, description: str, content: str, *, style: str = "") -> str:
    """An SVG that scales with the page and says what it shows to a screen reader."""
    return (
        f'<svg class="chart {style}" viewBox="0 0 {width} {height:g}" role="img" '
        f'aria-label="{escape(title, quote=True)}"><title>{escape(title)}</title>'
        f"<desc>{escape(description)}</desc>{content}</svg>"
    )


def label(x: float, y: float, content: str, *, anchor: str = "start", style: str = "") -> str:
    """A text; anchor is "start", "middle" or "end"."""
    return element(
        "text", text(content), x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=style or None
    )


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
    shape = f'<rect {named}x="{left:.1f}" y="{top:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f"{shape}>{element('title', text(said))}</rect>" if said else f"{shape}/>"


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
    return f"{body}>{element('title', text(title))}</{name}>" if title else f"{body}/>"


@dataclass(frozen=True)
class Key:
    """An entry of a legend. shape: dash and marker of the line it names, None for a patch of colour."""

    name: str
    colour: int
    shape: int | None = 0

    def swatch(self) -> str:
        """A piece of what the entry names."""
        if self.shape is None:
            return f'<span class="patch s{self.colour}" aria-hidden="true"></span>'
        dash = SERIES_DASHES[self.shape % SERIES_COUNT]
        return (
            f'<svg class="swatch s{self.colour % SERIES_COUNT}" viewBox="0 0 30 12" aria-hidden="true">'
            f"{path([(1, 6), (29, 6)], dash=dash)}{marker(15, 6, self.shape)}</svg>"
        )


def legend(keys: Sequence[Key], *, lines: bool = False) -> str:
    """A legend as a list. lines: the page's script makes each entry a button that dims its line."""
    items = "".join(
        element("li", key.swatch() + text(key.name), data_line=key.name if lines else None) for key in keys
    )
    return element("ul", items, class_="legend lines" if lines else "legend")
