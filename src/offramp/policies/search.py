"""Searching one set of documents for the fastest static exit or threshold rule at a quality floor."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from offramp.costs.token import TokenCosts
from offramp.policies.charging import exit_costs
from offramp.policies.kinds import Never, StaticExit, Threshold
from offramp.policies.policy import ExitPolicy
from offramp.policies.signals import SIGNALS, Signal
from offramp.policies.sweep import Sweep, sweep
from offramp.scoring.oracles import first_match
from offramp.tracing.trace import Trace

Exits = tuple[int, ...]

# Sets of exits are grown one exit at a time from the best single one, up to this many.
LARGEST_GROWN_SET = 3


@dataclass(frozen=True)
class Candidate:
    """A policy with its net speedup and its agreement on the documents it was chosen on."""

    policy: ExitPolicy
    speedup: float
    agreement: float


@dataclass
class Search:
    """The fastest policy found so far for each floor; the full model until something beats it.

    agreement: bool [tokens, exits of the trace].
    """

    trace: Trace
    costs: TokenCosts
    floors: tuple[float, ...]
    agreement: NDArray[np.bool_]
    best: dict[float, Candidate] = field(init=False)
    seen: set[tuple[str, Exits]] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        """Begin with the full model at every floor."""
        self.best = {floor: Candidate(Never(), 1.0, 1.0) for floor in self.floors}

    def offer(self, floor: float, candidate: Candidate) -> None:
        """Keep the candidate if it is faster than what the floor has."""
        if candidate.speedup > self.best[floor].speedup:
            self.best[floor] = candidate

    def required(self, floor: float) -> int:
        """Tokens that must agree for the share to reach the floor."""
        return math.ceil(floor * self.trace.token_count - 1e-9)

    def try_static(self) -> None:
        """Offer every traced exit below L as a static exit."""
        per_exit = exit_costs(self.costs, ())
        agreeing = self.agreement.sum(axis=0)
        for column, exit in enumerate(self.trace.exits[:-1]):
            for floor in self.floors:
                if agreeing[column] >= self.required(floor):
                    speedup = self.costs.plain / float(per_exit[exit - 1])
                    share = float(agreeing[column]) / self.trace.token_count
                    self.offer(floor, Candidate(StaticExit(int(exit)), speedup, share))

    def try_exits(self, exits: Exits, signals: Iterable[Signal]) -> None:
        """Offer the best threshold of each signal on one set of exits, unless no signal could win there."""
        new = [signal for signal in signals if (signal.name, exits) not in self.seen]
        self.seen.update((signal.name, exits) for signal in new)
        if not new:
            return
        bounds = self._speedup_bounds(exits)
        open_floors = [floor for floor in self.floors if bounds[floor] > self.best[floor].speedup]
        if not open_floors:
            return
        for signal in new:
            moves = sweep(self.trace, signal, exits, self.agreement)
            agreeing = moves.agreement_count()
            for floor in open_floors:
                # A bolder threshold is never slower, so the last point that holds the floor is the fastest.
                points = np.flatnonzero(agreeing >= self.required(floor))
                if points.size:
                    self.offer(
                        floor, self._candidate(moves, signal, int(points[-1]), int(agreeing[points[-1]]))
                    )

    def grow(self) -> None:
        """From each floor's best threshold on one exit, add the exit that helps most, again and again."""
        below = [int(exit) for exit in self.trace.exits[:-1]]
        for floor in self.floors:
            for size in range(2, LARGEST_GROWN_SET + 1):
                policy = self.best[floor].policy
                checked = policy.checked_exits(self.trace.layers)
                if not isinstance(policy, Threshold) or len(checked) != size - 1:
                    break
                for exit in below:
                    if exit not in checked:
                        self.try_exits(tuple(sorted((*checked, exit))), [SIGNALS[policy.signal]])

    def _candidate(self, moves: Sweep, signal: Signal, point: int, agreeing: int) -> Candidate:
        per_exit = exit_costs(self.costs, moves.exits)
        speedup = self.trace.token_count * self.costs.plain / moves.total_at(point, per_exit)
        bolder = float(moves.threshold[point + 1]) if point + 1 < len(moves.threshold) else None
        value = shortest_threshold(
            float(moves.threshold[point]), bolder, upwards=signal.exit_when == "at most"
        )
        every = moves.exits == tuple(range(1, self.trace.layers))
        policy = Threshold(signal.name, value, "all" if every else moves.exits)
        return Candidate(policy, speedup, agreeing / self.trace.token_count)

    def _speedup_bounds(self, exits: Exits) -> dict[float, float]:
        """For each floor, a speedup that no signal can exceed on this set of exits.

        The best conceivable signal leaves at the first checked exit that agrees, and spends the floor's
        allowed disagreements on the tokens that gain most by leaving at the very first.
        """
        columns = np.searchsorted(self.trace.exits, np.array([*exits, self.trace.layers]))
        cost = exit_costs(self.costs, exits)[self.trace.exits[columns] - 1]
        tokens = np.bincount(first_match(self.agreement[:, columns]), minlength=len(columns))
        deeper_first = tokens[:0:-1]
        gain = (cost - cost[0])[:0:-1]
        bounds = {}
        for floor in self.floors:
            allowed = self.trace.token_count - self.required(floor)
            before = np.cumsum(deeper_first) - deeper_first
            moved = np.clip(allowed - before, 0, deeper_first)
            total = float(tokens @ cost) - float(moved @ gain)
            # A hair above, so that rounding never closes a set that would tie.
            bounds[floor] = self.trace.token_count * self.costs.plain / total * (1.0 + 1e-12)
        return bounds


def fastest_policies(trace: Trace, costs: TokenCosts, floors: tuple[float, ...]) -> dict[float, Candidate]:
    """For each floor, the policy of largest net speedup whose agreement on this trace reaches it.

    Searched: every static exit; all thresholds of every signal on every single exit, on the sets of
    `exit_sets`, and on sets grown from the best single exit. `never` where nothing beats the full model.
    """
    search = Search(trace, costs, floors, trace.agreement)
    search.try_static()
    below = tuple(int(exit) for exit in trace.exits if exit < trace.layers)
    # Deep exits first: they agree most, so later sets meet a good candidate and are soon ruled out.
    for exit in reversed(below):
        search.try_exits((exit,), SIGNALS.values())
    search.grow()
    for exits in exit_sets(below):
        search.try_exits(exits, SIGNALS.values())
    return search.best


def exit_sets(below: Exits) -> tuple[Exits, ...]:
    """Sets worth checking of the exits below L: last quarter, last half, every 4th, every 2nd, all."""
    count = len(below)
    sets = (
        below[count - -(-count // 4) :],
        below[count - -(-count // 2) :],
        below[::-1][::4][::-1],
        below[::-1][::2][::-1],
        below,
    )
    return tuple(dict.fromkeys(exits for exits in sets if exits))


def shortest_threshold(value: float, bolder: float | None, *, upwards: bool) -> float:
    """The number of fewest decimals that decides as `value` does, for people to read.

    Every number from `value` up to, not including, the next bolder threshold makes the same decisions.
    upwards: bolder thresholds are larger (the token leaves "at most" at the threshold).
    """
    for decimals in range(1, 17):
        scale = 10.0**decimals
        candidate = (math.ceil(value * scale) if upwards else math.floor(value * scale)) / scale
        beyond = bolder is not None and (candidate >= bolder if upwards else candidate <= bolder)
        short = candidate < value if upwards else candidate > value
        if not beyond and not short:
            return candidate
    return value
