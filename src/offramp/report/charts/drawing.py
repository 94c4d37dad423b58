"""SVG building blocks: the drawing itself, text, lines, markers."""

from __future__ import annotations

from html import escape

from offramp.report.markup import element, text

SERIES_DASHES = ("", "7 3", "2 3", "9 3 2 3", "4 4", "12 4")
SERIES_COUNT = len(SERIES_DASHES)


def drawing(width: int, height: int, title: str, description: str, content: str, *, style: str = "") -> str:
    """An SVG that scales with the page and says what it shows to a screen reader."""
    return (
        f'<svg class="chart {style}" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title, quote=True)}"><title>{escape(title)}</title>'
        f"<desc>{escape(description)}</desc>{content}</svg>"
    )


def label(x: float, y: float, content: str, *, anchor: str = "start", style: str = "") -> str:
    """A text; anchor is "start", "middle" or "end"."""
    return element(
        "text", text(content), x=f"{x:.1f}", y=f"{y:.1f}", text_anchor=anchor, class_=style or None
    )


def line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    """A straight line."""
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def path(points: list[tuple[float, float]], *, dash: str = "") -> str:
    """A polyline in the current colour."""
    steps = "L".join(f"{x:.1f} {y:.1f}" for x, y in points)
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<path class="line" d="M{steps}"{dashes}/>'


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


def legend(names: list[tuple[str, int, int]]) -> str:
    """A legend as a list: (name, colour, dash and marker) each with a swatch like the line it names."""
    items = []
    for name, colour, shape in names:
        dash = SERIES_DASHES[shape % SERIES_COUNT]
        swatch = (
            f'<svg class="swatch s{colour % SERIES_COUNT}" viewBox="0 0 30 12" aria-hidden="true">'
            f"{path([(1, 6), (29, 6)], dash=dash)}{marker(15, 6, shape)}</svg>"
        )
        items.append(element("li", swatch + text(name)))
    return element("ul", "".join(items), class_="legend")
