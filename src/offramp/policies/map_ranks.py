"""The K,V maps of a trace's exit heads, as far as a replay must know them: their exits and ranks."""

from __future__ import annotations

from collections.abc import Iterable

from offramp.costs.probes import MapRanks
from offramp.errors import PolicyError
from offramp.tracing.trace import Trace

MAPPED = "mapped"
"""The KV strategy that takes them."""


def maps_of(trace: Trace) -> MapRanks:
    """The maps of the heads that a trace was made with.

    Raises PolicyError, with the command that fits them, if there are none.
    """
    found = ((trace.request.get("heads") or {}).get("kv_maps") or {}).get("ranks")
    if not found:
        raise PolicyError(
            "the trace's exit heads hold no K,V maps, so that it is not known what mapping K and V costs",
            where='kv "mapped"',
            fix="fit them and give the file: offramp heads fit MODEL --workload W --kv-maps EXITS -o FILE, "
            "then offramp trace ... --heads FILE",
        )
    return tuple(sorted((int(exit), rank) for exit, rank in found.items()))


def maps_charged(trace: Trace, kv: str) -> MapRanks:
    """The maps that a KV strategy is charged for: none but for "mapped". Raises as `maps_of` does."""
    return maps_of(trace) if kv == MAPPED else ()


def exits_without(maps: MapRanks, exits: Iterable[int], layers: int) -> list[int]:
    """Which of some exits have no maps, ascending; exits L - 1 and L of L layers need none."""
    return sorted(exit for exit in set(exits) - {exit for exit, _ in maps} if exit < layers - 1)


def require_exits(maps: MapRanks, exits: Iterable[int], layers: int, policy: str) -> None:
    """Refuse a policy with exits that have no maps; L - 1 and L need none. Raises PolicyError."""
    missing = exits_without(maps, exits, layers)
    if missing:
        listed = ", ".join(str(exit) for exit, _ in maps)
        raise PolicyError(
            f"{policy} leaves at exit {missing[0]}, which has no K,V maps; they start at: {listed}",
            where='kv "mapped"',
            fix="choose a policy whose exits are among these, or fit maps of its exits: "
            f"offramp heads fit MODEL --workload W --kv-maps {','.join(map(str, missing))} -o FILE",
        )
