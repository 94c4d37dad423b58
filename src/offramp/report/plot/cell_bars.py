"""Bars for a cell of a table: what a policy saves and spends against plain decoding, where its cost goes."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

from offramp.report.formats import decimal, percent
from offramp.report.html import escaped
from offramp.report.plot.drawing import box, label, line, marker
from offramp.report.plot.rows import Bar, draw_bar
from offramp.report.plot.scale import Scale, nice_step

WIDTH, HEIGHT = 250, 34
LEFT, RIGHT = 3, 247
MIDDLE, NET = 13, 28
STRIP_WIDTH, STRIP_HEIGHT = 110, 10
AXIS_TICKS = 3
LABEL_GAP = 40.0


@dataclass(frozen=True)
class Part:
    """A stretch of a bar. cost: as a share of plain decoding's. colour: 0 to 5."""

    name: str
    cost: float
    colour: int


@dataclass(frozen=True)
class Balance:
    """One policy's cost per token against plain decoding's (= 1).

    saved: by layers not run. spent: on top. change, low, high: of the whole, 0 = as plain decoding.
    hollow: of a policy that no decoder could follow.
    """

    name: str
    saved: float
    spent: tuple[Part, ...]
    change: float
    low: float | None = None
    high: float | None = None
    hollow: bool = False

    def bars(self) -> list[Bar]:
        """What is saved to the left of plain decoding, what is spent to the right."""
        bars, start = [], -self.saved
        for part in (Part("saved by leaving early", self.saved, 0), *self.spent):
            said = f"{part.name}: {percent(part.cost)} of plain decoding"
            bars.append(Bar(start, start + part.cost, said, part.colour))
            start += part.cost
        return [bar for bar in bars if bar.start < bar.end]

    def svg(self, reach: tuple[float, float]) -> Markup:
        """The bar on an axis of changes from reach[0] (faster) to reach[1]; what is longer runs off it."""
        scale = Scale(*reach, LEFT, RIGHT)
        bars = self.bars()
        parts = [draw_bar(bar, scale, MIDDLE, "part open" if self.hollow else "part") for bar in bars]
        parts.append(line(scale(0.0), 1, scale(0.0), HEIGHT - 1, "plain"))
        if any(bar.end > scale.high for bar in bars):
            parts.append(f'<path class="off" d="M{RIGHT - 13} {MIDDLE - 9}l7 9-7 9h5l7-9-7-9Z"/>')
        if any(bar.start < scale.low for bar in bars):
            parts.append(f'<path class="off" d="M{LEFT + 13} {MIDDLE - 9}l-7 9 7 9h-5l-7-9 7-9Z"/>')
        parts.append(self._net(scale))
        return small_drawing(f"{self.name}: {change_words(self.change)}", "".join(parts), WIDTH, HEIGHT)

    def _net(self, scale: Scale) -> str:
        """The net change as a dot with its interval, below the bar; left out where it lies off the axis."""
        if not scale.holds(self.change):
            return ""
        parts = []
        if self.low is not None and self.high is not None and self.low < self.high:
            ends = [scale(min(max(end, scale.low), scale.high)) for end in (self.low, self.high)]
            parts.append(line(ends[0], NET, ends[1], NET, "whisker"))
        parts.append(marker(scale(self.change), NET, 0, change_words(self.change), 3.6))
        return f'<g class="net">{"".join(parts)}</g>'


def change_words(change: float) -> str:
    """A change of cost in words."""
    if abs(change) < 0.0005:
        return "as much as plain decoding"
    return f"{percent(abs(change))} {'more' if change > 0 else 'less'} than plain decoding"


def reach_of(balances: list[Balance]) -> tuple[float, float]:
    """An axis on which savings can be read: at most three times as far to the right as to the left."""
    saved = max([0.08, *[balance.saved for balance in balances]])
    spent = max([0.08, *[sum(part.cost for part in balance.spent) for balance in balances]])
    return -1.06 * saved, min(1.06 * spent, 3.0 * saved)


def axis_svg(reach: tuple[float, float]) -> Markup:
    """The axis above a column of bars."""
    scale = Scale(*reach, LEFT, RIGHT)
    step = nice_step(reach[1] - reach[0], AXIS_TICKS)
    parts = []
    named = -LABEL_GAP
    for tick in scale.ticks(AXIS_TICKS):
        plain = abs(tick) < step / 2
        if scale(tick) - named >= LABEL_GAP:
            name = "plain" if plain else f"{'+' if tick > 0 else ''}{decimal(100 * tick, 0)} %"
            anchor = "start" if scale(tick) < 18 else "end" if scale(tick) > WIDTH - 18 else "middle"
            parts.append(label(scale(tick), 11, name, anchor=anchor))
            named = scale(tick)
        parts.append(line(scale(tick), 15, scale(tick), 20, "plain" if plain else "axis"))
    return small_drawing("change of cost per token against plain decoding", "".join(parts), WIDTH, 20)


def strip_svg(parts: tuple[Part, ...]) -> Markup:
    """Where the cost of a token goes, as shares of a whole."""
    whole = sum(part.cost for part in parts)
    if whole <= 0:
        return Markup()
    drawn, start = [], 0.0
    for part in parts:
        width = STRIP_WIDTH * part.cost / whole
        said = f"{part.name}: {percent(part.cost / whole)} of the whole"
        drawn.append(
            f'<g class="s{part.colour}">{box(start, 0, max(width - 0.6, 0), STRIP_HEIGHT, said=said)}</g>'
        )
        start += width
    words = ", ".join(f"{part.name} {percent(part.cost / whole, 0)}" for part in parts)
    return small_drawing(words, "".join(drawn), STRIP_WIDTH, STRIP_HEIGHT, style="strip")


def small_drawing(title: str, content: str, width: int, height: int, *, style: str = "row-bar") -> Markup:
    """A small SVG as wide as its cell, that says what it shows to a screen reader."""
    return Markup(
        f'<svg class="{style}" viewBox="0 0 {width} {height}" role="img" aria-label="{escaped(title)}">'
        f"{content}</svg>"
    )
