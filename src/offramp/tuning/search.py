"""Searching one set of documents for the fastest static exit or threshold rule at a quality floor."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from offramp.costs.token import TokenCosts
from offramp.policies.charging import exit_costs
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.fixed import Never, StaticExit
from offramp.policies.rules.threshold import Threshold, signal_needs
from offramp.policies.signals import SIGNALS, Signal
from offramp.policies.sweep import Sweep, sweep
from offramp.scoring.oracles import first_match
from offramp.tracing.trace import Trace
from offramp.tuning.exit_sets import Exits, exit_sets, firing_exits, fitting_sets, recorded_signals

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
        per_exit = exit_costs(self.costs, {})
        agreeing = self.agreement.sum(axis=0)
        for column, exit in enumerate(self.trace.exits[:-1]):
            for floor in self.floors:
                if agreeing[column] >= self.required(floor):
                    speedup = self.costs.plain / float(per_exit[exit - 1])
                    share = float(agreeing[column]) / self.trace.token_count
                    self.offer(floor, Candidate(StaticExit(int(exit)), speedup, share))

    def try_exits(self, exits: Exits, signals: Iterable[Signal]) -> None:
        """Offer the best threshold of each signal on one set of exits, unless it could not win there."""
        for signal in signals:
            for checked in fitting_sets(self.trace, signal, (exits,)):
                if (signal.name, checked) not in self.seen:
                    self.seen.add((signal.name, checked))
                    self._try_signal(checked, signal)

    def _try_signal(self, exits: Exits, signal: Signal) -> None:
        bounds = self._speedup_bounds(exits, signal)
        open_floors = [floor for floor in self.floors if bounds[floor] > self.best[floor].speedup]
        if not open_floors:
            return
        moves = sweep(self.trace, signal, firing_exits(signal, exits), self.agreement)
        agreeing = moves.agreement_count()
        per_exit = exit_costs(self.costs, signal_needs(signal, exits))
        rising = bool((np.diff(per_exit[np.array([*moves.exits, self.trace.layers]) - 1]) >= 0.0).all())
        totals = None if rising else moves.total(per_exit)
        for floor in open_floors:
            points = np.flatnonzero(agreeing >= self.required(floor))
            if points.size:
                # Where deeper exits cost more, a bolder threshold is never slower.
                point = int(points[-1] if totals is None else points[np.argmin(totals[points])])
                self.offer(floor, self._candidate(moves, signal, exits, point, int(agreeing[point])))

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

    def _candidate(self, moves: Sweep, signal: Signal, exits: Exits, point: int, agreeing: int) -> Candidate:
        per_exit = exit_costs(self.costs, signal_needs(signal, exits))
        speedup = self.trace.token_count * self.costs.plain / moves.total_at(point, per_exit)
        bolder = float(moves.threshold[point + 1]) if point + 1 < len(moves.threshold) else None
        value = shortest_threshold(
            float(moves.threshold[point]), bolder, upwards=signal.exit_when == "at most"
        )
        if not signal.holds(value):  # shortened beyond the signal's range
            value = float(moves.threshold[point])
        every = exits == tuple(range(1, self.trace.layers))
        policy = Threshold(signal.name, value, "all" if every else exits)
        return Candidate(policy, speedup, agreeing / self.trace.token_count)

    def _speedup_bounds(self, exits: Exits, signal: Signal) -> dict[float, float]:
        """For each floor, a speedup that no signal of this one's probes can exceed on this set of exits.

        The best conceivable signal leaves at the cheapest exit that agrees, and spends the floor's allowed
        disagreements on the tokens that gain most by leaving at the cheapest of all.
        """
        taken = np.array([*firing_exits(signal, exits), self.trace.layers])
        cost = exit_costs(self.costs, signal_needs(signal, exits))[taken - 1]
        order = np.argsort(cost, kind="stable")
        columns = np.searchsorted(self.trace.exits, taken[order])
        cost = cost[order]
        tokens = np.bincount(first_match(self.agreement[:, columns]), minlength=len(columns))
        dearest_first = tokens[:0:-1]
        gain = (cost - cost[0])[:0:-1]
        bounds = {}
        for floor in self.floors:
            allowed = self.trace.token_count - self.required(floor)
            before = np.cumsum(dearest_first) - dearest_first
            moved = np.clip(allowed - before, 0, dearest_first)
            total = float(tokens @ cost) - float(moved @ gain)
            # A hair above, so that rounding never closes a set that would tie.
            bounds[floor] = self.trace.token_count * self.costs.plain / total * (1.0 + 1e-12)
        return bounds


def fastest_policies(trace: Trace, costs: TokenCosts, floors: tuple[float, ...]) -> dict[float, Candidate]:
    """For each floor, the policy of largest net speedup whose agreement on this trace reaches it.

    Searched: every static exit; all thresholds of every signal that the trace holds on every single exit, on
    the sets of `exit_sets`, and on sets grown from the best single exit. `never` where nothing beats the full
    model.
    """
    search = Search(trace, costs, floors, trace.agreement)
    signals = recorded_signals(trace)
    search.try_static()
    below = tuple(int(exit) for exit in trace.exits if exit < trace.layers)
    # Deep exits first: they agree most, so later sets meet a good candidate and are soon ruled out.
    for exit in reversed(below):
        search.try_exits((exit,), signals)
    search.grow()
    for exits in exit_sets(below):
        search.try_exits(exits, signals)
    return search.best


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
