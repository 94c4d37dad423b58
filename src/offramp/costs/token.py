"""What one decoded token costs, part by part: the price list that every policy is charged from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from offramp.costs import counting
from offramp.errors import InputError
from offramp.models.shape import ModelShape


@dataclass(frozen=True)
class TokenCosts:
    """Prices of one token at batch 1, all in one unit ("bytes" or "flops").

    layers: float64 [layers], running each layer. head: final norm and output head.
    probe: one full-head check at an exit (final norm, head and reductions).
    key_value: float64 [layers], leaving behind what later tokens need of a skipped layer.
    """

    unit: str
    layers: NDArray[np.float64]
    head: float
    probe: float
    key_value: NDArray[np.float64]

    @property
    def plain(self) -> float:
        """The full model: every layer and the head once, no probe."""
        return float(self.until_exit[-1]) + self.head

    @cached_property
    def until_exit(self) -> NDArray[np.float64]:
        """Layers 1..l run and the repair of layers l+1..L, for every exit l = 1..L: float64 [layers]."""
        repair_of_all_above = np.append(np.cumsum(self.key_value[::-1])[::-1][1:], 0.0)
        return np.asarray(np.cumsum(self.layers) + repair_of_all_above, dtype=np.float64)


@dataclass(frozen=True)
class Unit:
    """How to price each part of a token in one unit."""

    name: str
    layers: Callable[[ModelShape, float], NDArray[np.float64]]
    head: Callable[[ModelShape], float]
    probe: Callable[[ModelShape], float]
    key_value: Callable[[ModelShape, float], NDArray[np.float64]]


UNITS: dict[str, Unit] = {
    unit.name: unit
    for unit in (
        Unit(
            "bytes",
            counting.layer_bytes,
            counting.head_bytes,
            counting.probe_bytes,
            counting.key_value_bytes,
        ),
        Unit(
            "flops",
            counting.layer_flops,
            counting.head_flops,
            counting.probe_flops,
            counting.key_value_flops,
        ),
    )
}


@dataclass(frozen=True)
class Prices:
    """The same token priced in bytes moved and in FLOPs."""

    bytes: TokenCosts
    flops: TokenCosts


def token_prices(shape: ModelShape, position: float) -> Prices:
    """Both price lists of one token decoded at `position` (0 = first).

    Raises InputError if the position is negative or not finite.
    """
    return Prices(bytes=token_costs(shape, position, "bytes"), flops=token_costs(shape, position, "flops"))


def token_costs(shape: ModelShape, position: float, unit: str) -> TokenCosts:
    """The prices of one token decoded at `position` (0 = first), in "bytes" moved or in "flops".

    Raises InputError for another unit, or a position that is negative or not finite.
    """
    if unit not in UNITS:
        raise InputError(f"no unit {unit!r} to count costs in", fix="choose one of: " + ", ".join(UNITS))
    price = UNITS[unit]
    return TokenCosts(
        unit=unit,
        layers=price.layers(shape, position),
        head=price.head(shape),
        probe=price.probe(shape),
        key_value=price.key_value(shape, position),
    )
