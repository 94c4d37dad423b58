"""Families of policies with exact grids: static exits, and one threshold of every signal on sets of exits."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from offramp.policies.rules.fixed import StaticExit
from offramp.policies.rules.threshold import Threshold, signal_needs
from offramp.policies.signals import Signal
from offramp.policies.walk import Walk
from offramp.tuning.curves import Curve, Grid, shortest_threshold
from offramp.tuning.exit_sets import Exits, exit_sets, firing_exits, fitting_sets
from offramp.tuning.pool import ROUNDING, Pool, Scored

# Signals whose best single exit is grown into sets, the fastest first.
GROWN_SIGNALS = 4
# Those sets are grown one exit at a time, up to so many exits.
LARGEST_GROWN_SET = 3


def add_static(pool: Pool) -> None:
    """Every traced exit below L as a static exit."""
    for exit in pool.below:
        exits = np.full(pool.trace.token_count, exit, dtype=np.int64)
        pool.add(pool.score("static exit", StaticExit(exit), Walk(exits, {}, None)))


class ThresholdFamily:
    """All thresholds of one signal on sets of exits of one pool."""

    def __init__(self, pool: Pool, signal: Signal, targets: Iterable[float]) -> None:
        self.pool = pool
        self.signal = signal
        self.targets = np.array(tuple(targets), dtype=np.float64)
        self.grid: Grid = pool.evidence.grid(signal)
        self.seen: set[Exits] = set()

    def curve_of(self, exits: Exits) -> Curve:
        """Risk and exits at every threshold on one set of exits, the opening one among them."""
        return self.pool.evidence.curve(self.signal, firing_exits(self.signal, exits))

    def costs_of(self, exits: Exits, shares: NDArray[np.float64]) -> NDArray[np.float64]:
        """Mean cost of a token at every threshold: shares [points, firing exits + 1] -> float64 [points]."""
        firing = firing_exits(self.signal, exits)
        per_exit = self.pool.pricing.at_exits(signal_needs(self.signal, exits))
        taken = per_exit[np.array([*firing, self.pool.trace.layers]) - 1]
        return self.pool.pricing.mean(taken, shares)

    def try_set(self, exits: Exits) -> Scored | None:
        """Add the fastest threshold at each target; gives the fastest at the largest target."""
        if exits in self.seen or not self.grid.points:
            return None
        self.seen.add(exits)
        found = self.curve_of(exits)
        costs = self.costs_of(exits, found.shares)
        best: Scored | None = None
        for point in found.cheapest(costs, self.targets + ROUNDING):
            best = self._scored(exits, found, costs, point)
            self.pool.add(best)
        return best

    def value_at(self, point: int) -> float:
        """One threshold of the grid, in the shortest number that decides alike."""
        value, bolder, signal = float(self.grid.values[point]), float(self.grid.bolder[point]), self.signal
        upwards = signal.exit_when == "at most"
        short = shortest_threshold(value, None if math.isnan(bolder) else bolder, upwards=upwards)
        # Shortened beyond the signal's range it would not be a threshold.
        return short if signal.holds(short) else value

    def policy_at(self, exits: Exits, point: int) -> Threshold:
        """The policy at one threshold of the grid."""
        known, key = self.pool.evidence.policies, (self.signal.name, exits, point)
        if key not in known:
            every = exits == tuple(range(1, self.pool.trace.layers))
            known[key] = Threshold(self.signal.name, self.value_at(point), "all" if every else exits)
        return known[key]

    def _scored(self, exits: Exits, found: Curve, costs: NDArray[np.float64], point: int) -> Scored:
        firing = firing_exits(self.signal, exits)
        depth = self.pool.evidence.executed[np.array([*firing, self.pool.trace.layers]) - 1]
        return Scored(
            family=f"{self.signal.name}, {_described(len(exits), len(self.pool.below))}",
            policy=self.policy_at(exits, point),
            risk=float(found.risk[point]),
            cost=float(costs[point]),
            skip_ratio=float(1.0 - found.shares[point] @ depth),
        )


def _described(count: int, traced: int) -> str:
    if count == traced and count > 1:
        return "all exits"
    return "1 exit" if count == 1 else f"{count} exits"


def add_thresholds(
    pool: Pool, signals: Iterable[Signal], targets: Iterable[float]
) -> dict[str, ThresholdFamily]:
    """Thresholds of every signal on single exits, on the usual sets, and grown from the best single exits."""
    targets = tuple(targets)
    families, singles = {}, []
    below = pool.below
    for signal in signals:
        family = ThresholdFamily(pool, signal, targets)
        families[signal.name] = family
        best = [
            scored
            for exits in fitting_sets(pool.trace, signal, [(exit,) for exit in below])
            if (scored := family.try_set(exits)) is not None
        ]
        for exits in fitting_sets(pool.trace, signal, exit_sets(below)):
            family.try_set(exits)
        if best and not signal.opens:
            singles.append((min(best, key=lambda scored: scored.cost), family))
    singles.sort(key=lambda pair: (pair[0].cost, pair[0].family))
    for scored, family in singles[:GROWN_SIGNALS]:
        _grow(family, scored)
    return families


def _grow(family: ThresholdFamily, single: Scored) -> None:
    """Add the exit that helps most, again and again, while that helps."""
    below, best = family.pool.below, single
    for _ in range(LARGEST_GROWN_SET - 1):
        checked = best.policy.checked_exits(family.pool.trace.layers)
        tried = [
            scored
            for exit in below
            if exit not in checked and (scored := family.try_set(tuple(sorted((*checked, exit))))) is not None
        ]
        better = min(tried, key=lambda scored: scored.cost, default=best)
        if better.cost >= best.cost:
            return
        best = better
