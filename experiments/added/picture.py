"""The pictures: what exits add, with intervals; time saved against agreement; plots of pages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from offramp.report.drawing import Key, Scale, label, line
from offramp.report.plots import Plot

WIDTH, LEFT, RIGHT, ROW = 860, 200, 640, 24
EDGE = 580
"""Of the points' drawing, whose names stand at its right."""
INK, QUIET, GRID = "#24292f", "#57606a", "#d0d7de"
STYLE = "".join(
    f"{name}{{{rules}}}"
    for name, rules in {
        "text": f"font:13px system-ui,sans-serif;fill:{INK}",
        ".quiet": f"fill:{QUIET}",
        ".grid": f"stroke:{GRID}",
        ".rule": f"stroke:{QUIET};stroke-dasharray:4 3",
        ".pays": "fill:#1a7f37;stroke:#1a7f37",
        ".not": "fill:#cf222e;stroke:#cf222e",
        ".open": f"fill:{QUIET};stroke:{QUIET}",
        ".exits": "fill:#0969da;stroke:#0969da",
        ".without": f"fill:#fff;stroke:{INK};stroke-width:1.5",
        ".wide": "stroke-width:2",
        ".best": f"fill:none;stroke:{INK};stroke-width:1.5",
        ".back": "fill:#fff",
    }.items()
)
KINDS = {"pays": "pays", "does not pay": "not"}
"""Colours of answers; every other one is open."""


@dataclass(frozen=True)
class Bar:
    """One interval."""

    name: str
    value: float
    low: float
    high: float
    answer: str
    less: bool = False
    """Whether its own timed answers keep less than what it is held against has to."""


def _svg(height: float, title: str, parts: Sequence[str], width: int = WIDTH) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height:.0f}" role="img" '
        f'aria-label="{escape(title)}"><style>{STYLE}</style><rect class="back" width="100%" height="100%"/>'
        f"{label(12, 24, title)}{''.join(parts)}</svg>\n"
    )


def forest(title: str, bars: Sequence[Bar], worth: float = 0.05) -> str:
    """An SVG: each interval in a row, beside nothing added and what is worth it; cut beyond the axis."""
    low = min(0.85, *(max(bar.low, 0.7) for bar in bars))
    high = max(1.2, *(min(bar.high, 1.6) for bar in bars))
    scale, top = Scale(low, high, LEFT, RIGHT), 62
    bottom = top + ROW * len(bars)
    parts = [line(scale(tick), top - 8, scale(tick), bottom, "grid") for tick in scale.ticks(6)]
    parts += [
        label(scale(tick), bottom + 18, f"{tick:g} ×", anchor="middle", style="quiet")
        for tick in scale.ticks(6)
    ]
    for at, name, anchor in ((1.0, "adds nothing", "end"), (1.0 + worth, "worth it", "start")):
        parts.append(line(scale(at), top - 12, scale(at), bottom, "rule"))
        parts.append(
            label(scale(at) + (-4 if anchor == "end" else 4), top - 16, name, anchor=anchor, style="quiet")
        )
    for place, bar in enumerate(bars):
        y, style = top + ROW * place + ROW / 2, KINDS.get(bar.answer, "open")
        ends = [scale(min(max(end, low), high)) for end in (bar.low, bar.high)]
        parts.append(label(12, y + 4, f"{bar.name}{' *' if bar.less else ''}"))
        parts.append(line(ends[0], y, ends[1], y, f"{style} wide"))
        parts.append(
            f'<circle cx="{scale(min(max(bar.value, low), high)):.1f}" cy="{y:.1f}" r="4" class="{style}"/>'
        )
        parts.append(label(RIGHT + 14, y + 4, f"{bar.value:.3f}: {bar.answer}", style="quiet"))
    said = "speed over the best decoder without exits in PyTorch"
    said += "; * but keeps less than the floor" if any(bar.less for bar in bars) else ""
    parts.append(label((LEFT + RIGHT) / 2, bottom + 38, said, anchor="middle", style="quiet"))
    return _svg(bottom + 52, title, parts)


@dataclass(frozen=True)
class Dot:
    """One way to decode."""

    name: str
    agreement: float
    saved: float
    """Share of plain decoding's time."""
    exits: bool


def scatter(title: str, dots: Sequence[Dot]) -> str:
    """An SVG: time saved over agreement; the line is the best without exits that keeps as much."""
    across = Scale(min(dot.agreement for dot in dots) - 0.005, 1.005, 70, EDGE)
    saved = [dot.saved for dot in dots]
    up = Scale(min(0.0, *saved) - 0.02, max(saved) + 0.04, 380, 60)
    parts = [line(70, up(tick), EDGE, up(tick), "grid") for tick in up.ticks(6)]
    parts += [
        label(64, up(tick) + 4, f"{100 * tick:.0f} %", anchor="end", style="quiet") for tick in up.ticks(6)
    ]
    parts += [
        label(across(tick), 400, f"{100 * tick:g} %", anchor="middle", style="quiet")
        for tick in across.ticks(6)
    ]
    # The best without exits at each agreement: a staircase from the most faithful to the boldest.
    steps: list[tuple[float, float]] = []
    best = 0.0
    for dot in sorted((dot for dot in dots if not dot.exits), key=lambda dot: -dot.agreement):
        if dot.saved > best or not steps:
            steps += [(dot.agreement, best), (dot.agreement, dot.saved)]
            best = max(best, dot.saved)
    steps.append((across.low, best))
    parts.append(f'<path class="best" d="M{"L".join(f"{across(x):.1f} {up(y):.1f}" for x, y in steps)}"/>')
    for number, dot in enumerate(sorted(dots, key=lambda dot: -dot.saved), start=1):
        style = "exits" if dot.exits else "without"
        parts.append(
            f'<circle cx="{across(dot.agreement):.1f}" cy="{up(dot.saved):.1f}" r="5" class="{style}"/>'
        )
        parts.append(label(across(dot.agreement) + 8, up(dot.saved) - 6, f"{number}", style="quiet"))
        parts.append(
            label(EDGE + 14, 56 + 18 * number, f"{number} {dot.name}", style="" if dot.exits else "quiet")
        )
    parts.append(
        label((70 + EDGE) / 2, 422, "tokens that are the full model's choice", anchor="middle", style="quiet")
    )
    parts.append(
        label(12, 48, "time saved of plain decoding; filled: with exits; line: best without", style="quiet")
    )
    return _svg(434, title, parts)


COLOURS = ("#0072b2", "#c65300", "#00805f", "#a8508a", "#8a6d00", "#4a4f57")
"""Of lines, as on a page."""
OF_A_PAGE = "".join(
    [
        ".chart{stroke-width:1}.axis{stroke:#57606a}.pays-area{fill:#1a7f37;opacity:.12}",
        ".line{fill:none;stroke:currentColor;stroke-width:2}.band{fill:currentColor;opacity:.16}.gap{stroke:currentColor}",
        "g>circle,g>rect,g>path{fill:currentColor}",
        *(f".s{place}{{color:{colour}}}" for place, colour in enumerate(COLOURS)),
    ]
)
"""What a plot's drawing needs of a page's style."""


def of_page(title: str, plot: Plot, keys: Sequence[Key], said: str) -> str:
    """An SVG: a plot of a page with its legend below it, and what is said of it."""
    size, top = plot.size, 36
    place = f'<svg x="12" y="{top}" width="{size.width}" height="{size.height}" '
    parts = [f"<style>{OF_A_PAGE}</style>", str(plot.svg()).replace("<svg ", place, 1)]
    for row, key in enumerate(keys):
        y = top + size.height + 14 + 20 * row
        swatch = f'<g class="s{key.colour}" transform="translate(84 {y})">{key.swatch}</g>'
        parts += [swatch, label(122, y + 10, key.name)]
    foot = top + size.height + 28 + 20 * len(keys)
    return _svg(foot + 12, title, [*parts, label(84, foot, said, style="quiet")], size.width + 24)
