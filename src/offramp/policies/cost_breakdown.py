"""The cost breakdown of a policy: how often each part ran times its price, and what each part saves."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from offramp.costs.token import TokenCosts
from offramp.kit.numbers import Number, whole_runs

PriceAt = Callable[[int], TokenCosts]
"""Prices of a step by its number of rows: one row is one token of one sequence."""


@dataclass(frozen=True, order=True)
class Item:
    """Something that a step pays for.

    part: a name in PARTS. place: the layer or exit 1..L, 0 where it has none. rows: tokens that it is done
    for at once. probe: its kind, for probes.
    """

    part: str
    place: int = 0
    rows: int = 1
    probe: str = ""


Usage = Counter[Item]
"""How often each item is paid."""


LAYERS, HEAD, PROBES = GAIN_PARTS = ("layers", "head", "probes")


class CostPart(NamedTuple):
    """Something that steps pay for: the part of a gain that it counts for, and the price of an item."""

    gain: str
    price: Callable[[TokenCosts, Item], float]


PARTS: Mapping[str, CostPart] = {
    "overhead": CostPart(LAYERS, lambda costs, item: costs.overhead),
    "layers": CostPart(LAYERS, lambda costs, item: float(costs.layers[item.place - 1])),
    "K,V projection": CostPart(LAYERS, lambda costs, item: float(costs.key_value[item.place - 1])),
    "K,V map": CostPart(LAYERS, lambda costs, item: costs.maps[item.place]),
    "probe": CostPart(PROBES, lambda costs, item: costs.probes[item.probe]),
    "exit head": CostPart(HEAD, lambda costs, item: costs.exit_head),
    "short head": CostPart(HEAD, lambda costs, item: costs.short_head_at(item.place)),
    "final head": CostPart(HEAD, lambda costs, item: costs.head),
}
"""What a breakdown is of, in its order."""


def price_of(item: Item, at: PriceAt) -> float:
    """The price of an item, in a step of as many rows."""
    return PARTS[item.part].price(at(item.rows), item)


@dataclass(frozen=True)
class Line:
    """One line of a breakdown: `count` times `price`.

    places: the layers or exits that it is about, ascending. rows: tokens that it is done for at once.
    """

    READ_OFF: ClassVar[tuple[str, ...]] = ("total",)

    part: str
    places: tuple[int, ...]
    rows: int
    probe: str
    count: int
    price: float

    @property
    def total(self) -> float:
        """Count times price, in the unit of the breakdown."""
        return self.count * self.price

    @property
    def where(self) -> str:
        """The layers or exits as text: "layers 1-30", "exit 10", empty for a whole step."""
        if not self.places:
            return ""
        noun = "layer" if self.part in ("layers", "K,V projection") else "exit"
        runs = [f"{first}-{last}" if first < last else f"{first}" for first, last in whole_runs(self.places)]
        return f"{noun}{'s' if len(self.places) > 1 else ''} {', '.join(runs)}"


@dataclass(frozen=True)
class CostBreakdown:
    """What a policy is charged for a whole trace, and what the full model costs on the same tokens.

    unit: "bytes", "flops" or "seconds", of every price and total. lines: in the order of PARTS; their sum is
    `total`. plain_lines: what the full model costs in the same steps; their sum is `plain`. tokens: that the
    breakdown is for.
    """

    READ_OFF: ClassVar[tuple[str, ...]] = ("total", "plain", "speedup")
    NOT_KEPT: ClassVar[tuple[str, ...]] = ("plain_lines",)

    unit: str
    tokens: int
    lines: tuple[Line, ...]
    plain_lines: tuple[Line, ...]

    @property
    def total(self) -> float:
        """Sum of all lines."""
        return math.fsum(line.total for line in self.lines)

    @property
    def plain(self) -> float:
        """The full model's total."""
        return math.fsum(line.total for line in self.plain_lines)

    @property
    def per_token(self) -> float:
        """Mean cost of a token."""
        return self.total / self.tokens

    @property
    def plain_per_token(self) -> float:
        """The same of the full model."""
        return self.plain / self.tokens

    @property
    def speedup(self) -> float:
        """Plain cost over the policy's."""
        return self.plain / self.total

    @property
    def gain(self) -> Gain:
        """Where its gain comes from, by its own prices."""
        return gain_of_parts(totals_of(self.lines), totals_of(self.plain_lines))

    @property
    def probes_per_token(self) -> float:
        """Probes that it charges, each for every row, over its tokens."""
        return sum(line.count * line.rows for line in self.lines if line.probe) / self.tokens

    @property
    def batches(self) -> tuple[int, ...]:
        """The numbers of rows whose prices it uses, ascending."""
        return tuple(sorted({line.rows for line in self.lines}))


def break_down(
    usage: Mapping[Item, int], plain: Mapping[Item, int], at: PriceAt, tokens: int
) -> CostBreakdown:
    """The breakdown of some usage, and of the full model's usage on the same tokens."""
    return CostBreakdown(at(1).unit, tokens, lines=lines_of(usage, at), plain_lines=lines_of(plain, at))


def lines_of(usage: Mapping[Item, int], at: PriceAt) -> tuple[Line, ...]:
    """The lines of a breakdown; layers and heads of one price are one line, probes have one for each exit."""
    order = list(PARTS)
    merged: dict[tuple[Any, ...], list[Item]] = {}
    for item in sorted(usage, key=lambda item: (order.index(item.part), item.rows, item.place, item.probe)):
        if usage[item]:
            price = price_of(item, at)
            apart = item.place if item.part == "probe" else 0
            merged.setdefault((item.part, item.rows, item.probe, price, apart), []).append(item)
    return tuple(
        Line(
            part=part,
            places=tuple(item.place for item in items if item.place),
            rows=rows,
            probe=probe,
            count=sum(usage[item] for item in items),
            price=price,
        )
        for (part, rows, probe, price, _), items in merged.items()
    )


@dataclass(frozen=True)
class Gain:
    """What each part saves, as a share of the plain decoder's cost of a token; below 0 where it costs.

    layers: layers that do not run, less what is left behind for them (K and V) and what steps cost beside,
    whatever they run ("overhead", which differs only where drafts are made again). head: the output head, at
    exits and at the end; a token whose probe gives its output saves the whole product here and pays it there.
    probes: all checks, which the plain decoder does not make. Their sum is 1 - policy / plain.
    """

    layers: Number
    head: Number
    probes: Number

    @property
    def total(self) -> float:
        """1 - policy / plain."""
        return math.fsum((self.layers, self.head, self.probes))

    @property
    def by_exits(self) -> float:
        """What leaving early saves: layers less the checks for it. A shorter head needs no early exit."""
        return math.fsum((self.layers, self.probes))


def saved_error(low: float | None, high: float | None) -> float:
    """Half the width of what a speed saves of plain decoding's time, from its limits; 0 without an interval.

    A part of the gain that is smaller may be nothing.
    """
    return 0.0 if not low or not high else (1.0 / low - 1.0 / high) / 2.0


def gain_of_parts(policy: Mapping[str, float], plain: Mapping[str, float]) -> Gain:
    """Where a gain comes from, from costs of a token by part (the keys of PARTS)."""
    whole = math.fsum(plain.values())
    saved: dict[str, list[float]] = {LAYERS: [], HEAD: [], PROBES: []}
    for costs, sign in ((plain, 1.0), (policy, -1.0)):
        for part, cost in costs.items():
            saved[PARTS[part].gain].append(sign * cost)
    return Gain(**{name: math.fsum(values) / whole for name, values in saved.items()})


def totals_of(lines: Iterable[Line]) -> dict[str, float]:
    """Sums of some lines by part."""
    totals: dict[str, float] = {}
    for line in lines:
        totals[line.part] = totals.get(line.part, 0.0) + line.total
    return totals
