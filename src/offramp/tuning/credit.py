"""What early exit adds to the best that can be had without it at the same floor."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from offramp.tuning.results import LeagueEntry


@dataclass(frozen=True)
class Credit:
    """The fastest early exit at a floor beside the fastest decoder that leaves no layer out.

    exits, without: their policies. speedup, without_speedup: of each over the full model. Without any early
    exit that holds the floor, exits and speedup are None.
    """

    floor: float
    exits: str | None
    speedup: float | None
    without: str
    without_speedup: float

    @property
    def ratio(self) -> float | None:
        """How many times as fast early exit is as the best without it: what it is credited with."""
        return None if self.speedup is None else self.speedup / self.without_speedup


def early_exit_credit(entries: Iterable[LeagueEntry], floor: float) -> Credit:
    """What early exit is credited with at a floor, from a league's entries there.

    Those count that hold the floor on the half that judges them (its value, not its interval). Of early exits
    and of the others the one that was faster on the half that chose is taken, and its speed on the other, so
    that luck there picks nobody. The full model always holds the floor, with a speedup of 1.
    """
    held = sorted(
        (entry.rank, entry.policy, entry.net_speedup.value, entry.full_depth)
        for entry in entries
        if entry.floor == floor and entry.rank is not None and entry.net_speedup.value is not None
        if entry.agreement.value is not None and entry.agreement.value >= floor
    )
    exits = next(((policy, speed) for _, policy, speed, full in held if not full), None)
    without = next(((policy, speed) for _, policy, speed, full in held if full and speed > 1.0), None)
    policy, speedup = exits or (None, None)
    baseline, baseline_speedup = without or ("never", 1.0)
    return Credit(floor, policy, speedup, baseline, baseline_speedup)
