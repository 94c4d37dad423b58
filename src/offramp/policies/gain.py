"""Where a gain comes from: what each part of a step saves, as a share of the plain decoder's cost."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from offramp.policies.bill import Bill, Item, Line, PriceAt, make_bill

LAYERS, HEAD, PROBES = GAIN_PARTS = ("layers", "head", "probes")

GAIN_OF_PART: Mapping[str, str] = {
    "overhead": LAYERS,
    "layers": LAYERS,
    "K,V projection": LAYERS,
    "K,V map": LAYERS,
    "probe": PROBES,
    "exit head": HEAD,
    "short head": HEAD,
    "final head": HEAD,
}
"""What each part of a bill counts for (the names of `offramp.policies.bill.PARTS`)."""


@dataclass(frozen=True)
class Gain:
    """What each part saves, as a share of the plain decoder's cost of a token; below 0 where it costs.

    layers: layers that do not run, less what is left behind for them (K and V) and what steps cost beside,
    whatever they run ("overhead", which differs only where drafts are made again). head: the output head, at
    exits and at the end; a token whose probe gives its output saves the whole product here and pays it there.
    probes: all checks, which the plain decoder does not make. Their sum is 1 - policy / plain.
    """

    layers: float
    head: float
    probes: float

    @property
    def total(self) -> float:
        """1 - policy / plain."""
        return math.fsum((self.layers, self.head, self.probes))

    def to_json(self) -> dict[str, float]:
        """The parts by name."""
        return asdict(self)


def split_gain(bill: Bill) -> Gain:
    """Where the gain of a bill comes from, by its own prices."""
    return gain_of_parts(totals_of(bill.lines), totals_of(bill.plain_lines))


def gain_of_usage(usage: Mapping[Item, int], plain: Mapping[Item, int], at: PriceAt, tokens: int) -> Gain:
    """Where the gain of what really ran comes from, at some prices (counted bytes, or a machine's seconds).

    usage, plain: of a generation with a policy and of one with the full model (`BatchGeneration.usage`), of
    as many tokens each.
    """
    return split_gain(make_bill(usage, plain, at, tokens))


def gain_of_parts(policy: Mapping[str, float], plain: Mapping[str, float]) -> Gain:
    """Where a gain comes from, from costs of a token by part of a bill (the keys of GAIN_OF_PART)."""
    whole = math.fsum(plain.values())
    saved: dict[str, list[float]] = {LAYERS: [], HEAD: [], PROBES: []}
    for costs, sign in ((plain, 1.0), (policy, -1.0)):
        for part, cost in costs.items():
            saved[GAIN_OF_PART[part]].append(sign * cost)
    return Gain(**{name: math.fsum(values) / whole for name, values in saved.items()})


def totals_of(lines: Iterable[Line]) -> dict[str, float]:
    """Sums of some lines by part of the bill."""
    totals: dict[str, float] = {}
    for line in lines:
        totals[line.part] = totals.get(line.part, 0.0) + line.total
    return totals
