"""What the sums of a lens and of K,V maps take, known before anything is fitted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import psutil

from offramp.errors import InputError
from offramp.tracing.fitting.maps import Rank, mapped_layers
from offramp.tracing.fitting.sums import sums_bytes
from offramp.tracing.key_value_maps import ELEMENT_BYTES, map_elements

MEMORY_SHARE = 0.8
"""Share of the free memory that sums and maps may take."""


@dataclass(frozen=True)
class FittingMemory:
    """Bytes that fitting takes beside the model.

    lens_exits: how many exits get a lens. map_exits: those that get K,V maps. lens_sums, map_sums: of the
    sums of each; maps: of the maps themselves, at most.
    """

    lens_exits: int
    map_exits: tuple[int, ...]
    lens_sums: int
    map_sums: int
    maps: int

    @property
    def parts(self) -> list[str]:
        """What takes how much, in words."""
        found = []
        if self.lens_exits:
            exits = "exit" if self.lens_exits == 1 else "exits"
            found.append(
                f"the sums of a linear lens at {self.lens_exits} {exits} take {_size(self.lens_sums)}"
            )
        if self.map_exits:
            listed = ", ".join(map(str, self.map_exits))
            found.append(
                f"the sums of K,V maps at exit{'s' * (len(self.map_exits) > 1)} {listed} take "
                f"{_size(self.map_sums)}, the maps at most {_size(self.maps)}"
            )
        return found

    def require(self, model: str) -> None:
        """Raise InputError, with all sizes, if they do not fit into memory."""
        free = psutil.virtual_memory().available
        if self.lens_sums + self.map_sums + self.maps <= MEMORY_SHARE * free:
            return
        fixes = ["give fewer --exits, or leave the lens out with --no-lens"] * bool(self.lens_exits)
        fixes += ["give fewer --kv-maps, or a lower --kv-rank"] * bool(self.map_exits)
        raise InputError(
            f"{'; '.join(self.parts)}; {_size(free)} are free", where=model, fix="; ".join(fixes)
        )


def fitting_memory(
    hidden: int, layers: int, lens_exits: int, map_exits: Sequence[int], rank: Rank
) -> FittingMemory:
    """What fitting takes on a model of so many layers.

    Maps whose rank is still to be found are counted as whole ones: they take no more.
    """
    counts = [len(deeper) for deeper in mapped_layers(map_exits, layers).values()]
    kept = min(rank, hidden) if isinstance(rank, int) else None
    return FittingMemory(
        lens_exits=lens_exits,
        map_exits=tuple(map_exits),
        lens_sums=sums_bytes(hidden, [1] * lens_exits),
        map_sums=sums_bytes(hidden, counts),
        maps=ELEMENT_BYTES * sum(map_elements(hidden, count, kept) for count in counts),
    )


def _size(count: int) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
