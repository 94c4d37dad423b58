"""What one decoding step costs, part by part: the price list that every policy is charged from."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from offramp.costs import counting
from offramp.costs.probes import (
    PROBES,
    ProbeKind,
    ProbeSizes,
    lens_bytes,
    lens_flops,
    map_bytes,
    map_flops,
)
from offramp.errors import InputError
from offramp.kit.typed import FloatArray
from offramp.models.shape import ModelShape


@dataclass(frozen=True)
class TokenCosts:
    """Prices of one decoding step, all in one unit ("bytes", "flops" or "seconds").

    A step decodes one token of each of `batch` sequences; every price is that of the whole step.
    """

    unit: str
    layers: FloatArray
    """float64 [layers], running each layer."""
    head: float
    """Final norm and output head of the full model."""
    exit_head: float
    """The same at an exit below L, a linear lens before it included."""
    probes: Mapping[str, float]
    """One check at an exit, by probe kind (see `offramp.costs.probes.PROBES`), the lens included."""
    key_value: FloatArray
    """float64 [layers], leaving behind what later tokens need of a skipped layer."""
    overhead: float = 0.0
    """What a step costs whatever it runs (embedding, choosing the token, the program around)."""
    batch: int = 1
    maps: Mapping[int, float] = field(default_factory=dict)
    """By exit, the K,V maps of tokens that leave there, where K and V are mapped; empty elsewhere."""
    decision: float = 0.0
    """How much of every probe is waiting until the host knows its answer, 0 where that is not apart."""
    short_list: bool = False
    """Whether `exit_head` is the price of the short list's columns."""

    @property
    def plain(self) -> float:
        """The full model: every layer and the head once, no probe."""
        return self.overhead + float(self.until_exit[-1]) + self.head

    @property
    def short_exit_head(self) -> float:
        """The final norm and the head's columns of the short list at an exit below L, a lens included.

        The same work as a probe of the list; an output, whole or short, is waited for once, in `overhead`.
        """
        return self.probes["restricted head"] - self.decision

    @property
    def short_head(self) -> float:
        """The same at exit L, which is read through no lens."""
        return self.short_exit_head - (self.exit_head - self.head)

    def short_head_at(self, exit: int) -> float:
        """Whichever of both an exit is read by."""
        return self.short_head if exit == len(self.layers) else self.short_exit_head

    @cached_property
    def until_exit(self) -> NDArray[np.float64]:
        """Layers 1..l run and the repair of layers l+1..L, for every exit l = 1..L: float64 [layers]."""
        repair_of_all_above = np.append(np.cumsum(self.key_value[::-1])[::-1][1:], 0.0)
        for exit, price in self.maps.items():
            repair_of_all_above[exit - 1] += price
        return np.asarray(np.cumsum(self.layers) + repair_of_all_above, dtype=np.float64)

    @cached_property
    def heads(self) -> NDArray[np.float64]:
        """The output head's price at every exit l = 1..L: float64 [layers]."""
        prices = np.full(len(self.layers), self.exit_head)
        prices[-1] = self.head
        return prices


def add_costs(one: TokenCosts, other: TokenCosts) -> TokenCosts:
    """The prices of two steps after each other, which decode the tokens of both."""
    return TokenCosts(
        unit=one.unit,
        layers=one.layers + other.layers,
        head=one.head + other.head,
        exit_head=one.exit_head + other.exit_head,
        probes={name: price + other.probes[name] for name, price in one.probes.items()},
        key_value=one.key_value + other.key_value,
        overhead=one.overhead + other.overhead,
        decision=one.decision + other.decision,
        batch=one.batch + other.batch,
        maps={exit: price + other.maps[exit] for exit, price in one.maps.items()},
        short_list=one.short_list,
    )


@dataclass(frozen=True)
class Unit:
    """How to count each part of a step in one unit, as functions of shape, (position,) and batch."""

    name: str
    layers: Callable[[ModelShape, float, int], NDArray[np.float64]]
    head: Callable[[ModelShape, int], float]
    probe: Callable[[ProbeKind, ModelShape, ProbeSizes, int], float]
    key_value: Callable[[ModelShape, float, int], NDArray[np.float64]]
    lens: Callable[[ModelShape, int, ProbeSizes], float]
    map: Callable[[ModelShape, int, int | None, int], float]


UNITS: dict[str, Unit] = {
    unit.name: unit
    for unit in (
        Unit(
            "bytes",
            counting.layer_bytes,
            lambda shape, batch: counting.head_bytes(shape),
            ProbeKind.batch_bytes,
            counting.key_value_bytes,
            lambda shape, batch, sizes: lens_bytes(shape, sizes),
            lambda shape, layers, rank, batch: map_bytes(shape, layers, rank),
        ),
        Unit(
            "flops",
            counting.layer_flops,
            counting.head_flops,
            ProbeKind.batch_flops,
            counting.key_value_flops,
            lens_flops,
            map_flops,
        ),
    )
}


def token_costs(
    shape: ModelShape,
    position: float,
    unit: str,
    *,
    batch: int = 1,
    lens: bool = False,
    sizes: ProbeSizes | None = None,
) -> TokenCosts:
    """The prices of a step that decodes `batch` tokens at `position`, in "bytes" moved or in "flops".

    lens: whether exits below L are read through a linear lens or a network. sizes: of the probes, of lens and
    network, and of K,V maps that are to be priced too.

    Raises InputError for another unit, a position that is negative or not finite, or a batch below 1.
    """
    if unit not in UNITS:
        raise InputError(f"no unit {unit!r} to count costs in", fix="choose one of: " + ", ".join(UNITS))
    price = UNITS[unit]
    sizes = ProbeSizes() if sizes is None else sizes
    through_lens = price.lens(shape, batch, sizes) if lens else 0.0
    return TokenCosts(
        unit=unit,
        layers=price.layers(shape, position, batch),
        head=price.head(shape, batch),
        exit_head=price.head(shape, batch) + through_lens,
        probes={
            name: price.probe(kind, shape, sizes, batch) + (through_lens if kind.reads_logits else 0.0)
            for name, kind in PROBES.items()
        },
        key_value=price.key_value(shape, position, batch),
        batch=batch,
        maps={
            exit: price.map(shape, len(shape.layers) - 1 - exit, rank, batch) for exit, rank in sizes.kv_maps
        },
    )
