"""One signal's thresholds on sets of exits: all alike, one for each exit, or behind a filter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from offramp.costs.probes import PROBES
from offramp.policies.decisions import Decisions
from offramp.policies.parameter_types import Exits
from offramp.policies.policy import ExitPolicy
from offramp.policies.prices import check_price, gives_output
from offramp.policies.rules.around import Filtered
from offramp.policies.rules.fixed import StaticExit
from offramp.policies.rules.threshold import Threshold, signal_needs
from offramp.policies.signals import SIGNALS, Signal
from offramp.tracing.trace import Trace
from offramp.tuning.curves import Curve, ThresholdGrid, curve, shortest_threshold
from offramp.tuning.pool import ROUNDING, Pool, ScoredPolicy


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


def recorded_signals(trace: Trace) -> tuple[Signal, ...]:
    """The signals whose fact, and what their first check reads, the trace holds without a NaN."""
    return tuple(signal for signal in SIGNALS.values() if holds(trace, signal.fact))


def holds(trace: Trace, fact: str) -> bool:
    """Whether a trace holds a fact."""
    return fact in trace.fact_names


def fitting_sets(trace: Trace, signal: Signal, sets: Iterable[Exits]) -> tuple[Exits, ...]:
    """The sets of exits on which a signal can be checked, each with the exit that it opens with.

    A signal that looks back was recorded against the previous traced exit, so its checks follow one another;
    the candidates of one that opens were taken at one exit.
    """
    sets = tuple(sets)
    if not signal.opens:
        return sets
    traced = [int(exit) for exit in trace.exits]
    opened: list[Exits] = []
    for exits in sets:
        if signal.looks_back:
            first = max(traced.index(exits[0]) - 1, 0)
            run = tuple(traced[first : traced.index(exits[-1]) + 1])
            if len(run) > 1 and set(run[1:]) <= set(exits):
                opened.append(run)
        else:
            opener = opening_exit(trace)
            beyond = tuple(exit for exit in exits if opener is not None and exit > opener)
            if opener is not None and beyond:
                opened.append((opener, *beyond))
    return tuple(dict.fromkeys(opened))


def firing_exits(signal: Signal, exits: Exits) -> Exits:
    """The exits of a set where a signal may let a token leave: all but one that only opens."""
    return exits[1:] if signal.opens else exits


def opening_exit(trace: Trace) -> int | None:
    """The exit whose best tokens are the candidates of the trace's candidate head, if that was recorded."""
    heads = trace.request.get("heads")
    opener = heads.get("candidate_exit") if heads else None
    if opener is None or opener not in trace.exits:
        return None
    return int(opener)


# Signals whose best single exit is grown into sets, the fastest first.
GROWN_SIGNALS = 4
# Those sets are grown one exit at a time, up to so many exits.
LARGEST_GROWN_SET = 3


def add_static(pool: Pool) -> None:
    """Every traced exit below L as a static exit."""
    for exit in pool.evidence.below:
        exits = np.full(pool.trace.token_count, exit, dtype=np.int64)
        pool.add(pool.score("static exit", StaticExit(exit), Decisions(exits, {}, None)))


class ThresholdFamily:
    """All thresholds of one signal on sets of exits of one pool."""

    def __init__(self, pool: Pool, signal: Signal, targets: Iterable[float]) -> None:
        self.pool = pool
        self.signal = signal
        self.targets = np.array(tuple(targets), dtype=np.float64)
        self.grid: ThresholdGrid = pool.evidence.grid(signal)
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

    def try_set(self, exits: Exits) -> ScoredPolicy | None:
        """Add the fastest threshold at each target; gives the fastest at the largest target."""
        if exits in self.seen or not self.grid.points:
            return None
        self.seen.add(exits)
        curve = self.curve_of(exits)
        costs = self.costs_of(exits, curve.shares)
        best: ScoredPolicy | None = None
        for point in curve.cheapest(costs, self.targets + ROUNDING):
            best = self._scored(exits, curve, costs, point)
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

    def _scored(self, exits: Exits, found: Curve, costs: NDArray[np.float64], point: int) -> ScoredPolicy:
        firing = firing_exits(self.signal, exits)
        depth = self.pool.evidence.executed[np.array([*firing, self.pool.trace.layers]) - 1]
        return ScoredPolicy(
            family=f"{self.signal.name}, {_described(len(exits), len(self.pool.evidence.below))}",
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
    below = pool.evidence.below
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


def _grow(family: ThresholdFamily, single: ScoredPolicy) -> None:
    """Add the exit that helps most, again and again, while that helps."""
    below, best = family.pool.evidence.below, single
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


# What a unit of mean loss may cost, in plain tokens per allowed risk: from bold to cautious.
PRICES_OF_LOSS = tuple(float(price) for price in np.geomspace(0.03, 30.0, 8))
# Passes over the exits; the second rarely changes much.
PASSES = 2

NEVER = -1
"""The threshold of an exit where nothing leaves, so that it need not be checked."""


@dataclass(frozen=True)
class ExitRates:
    """Prices of one token at batch 1 at every checked exit: float64 [exits].

    leave: layers and head of leaving there; check: the probe. last: of exit L.
    """

    leave: NDArray[np.float64]
    check: NDArray[np.float64]
    last: float


def rates_of(family: ThresholdFamily, exits: Exits) -> ExitRates:
    """The prices of a signal's exits, shared out evenly over the batch."""
    costs = family.pool.pricing.costs
    facts = (family.signal.fact,)
    places = np.array(exits) - 1
    heads = np.zeros(len(exits)) if gives_output(facts, short_list=costs.short_list) else costs.heads[places]
    leave = costs.overhead + costs.until_exit[places] + heads
    price = check_price(costs, facts)
    check = np.full(len(exits), price)
    return ExitRates(leave / costs.batch, check / costs.batch, costs.plain / costs.batch)


def per_exit_thresholds(
    family: ThresholdFamily, exits: Exits, risk: float, prices: Iterable[float] = PRICES_OF_LOSS
) -> list[tuple[Exits, tuple[float, ...]]]:
    """Thresholds per exit that coordinate ascent finds for a signal on a set of exits: (exits, thresholds).

    Minimised is the mean cost of a token plus a price times its loss, from deep to shallow exits, all others
    held fixed, over all thresholds of the grid at once; the start is the best single threshold at that price.
    Exits where nothing should leave are dropped. The signal must not open.
    """
    pool = family.pool
    places = np.array([pool.evidence.below.index(exit) for exit in exits])
    ranks = family.grid.ranks[:, places].astype(np.int32)
    losses = pool.evidence.losses[:, [*pool.evidence.columns(exits), -1]]
    rates = rates_of(family, exits)
    single = family.curve_of(exits)
    costs = family.costs_of(exits, single.shares)
    rules = []
    for price in prices:
        of_loss = price * pool.pricing.plain / risk
        start = int(np.argmin(costs + of_loss * single.risk))
        thresholds = np.full(len(exits), start, dtype=np.int64)
        for _ in range(PASSES):
            _improve(thresholds, ranks, losses, rates, pool.evidence.weights, of_loss, family.grid.points)
        kept = np.flatnonzero(thresholds != NEVER)
        if kept.size:
            chosen = tuple(exits[place] for place in kept)
            rules.append((chosen, tuple(family.value_at(int(thresholds[place])) for place in kept)))
    return list(dict.fromkeys(rules))


def _improve(
    thresholds: NDArray[np.int64],
    ranks: NDArray[np.int32],
    losses: NDArray[np.float32],
    rates: ExitRates,
    weights: NDArray[np.float64],
    of_loss: float,
    points: int,
) -> None:
    """One pass over the exits from deep to shallow; changes `thresholds`.

    ranks: [tokens, exits]. losses: [tokens, exits + 1], those at exit L last. weights: float64 [tokens].
    """
    tokens = len(ranks)
    fires = ranks <= thresholds
    arrives = np.ones(fires.shape, dtype=np.bool_)
    np.logical_not(np.logical_or.accumulate(fires[:, :-1], axis=1), out=arrives[:, 1:])
    # What a token that passes the exit costs and loses from there on.
    cost, lost = np.full(tokens, rates.last), losses[:, -1].astype(np.float64)
    for place in range(len(thresholds) - 1, -1, -1):
        rows = np.flatnonzero(arrives[:, place])
        leaving = (rates.leave[place] - cost[rows]) / tokens
        leaving += of_loss * weights[rows] * (losses[rows, place] - lost[rows])
        change = np.cumsum(np.bincount(ranks[rows, place], weights=leaving, minlength=points + 1)[:points])
        best = int(np.argmin(change))
        checked = rates.check[place] * len(rows) / tokens
        thresholds[place] = best if change[best] + checked < 0.0 else NEVER
        if thresholds[place] == NEVER:
            continue
        goes = ranks[:, place] <= thresholds[place]
        cost = np.where(goes, rates.leave[place], cost) + rates.check[place]
        lost = np.where(goes, losses[:, place], lost)


# Thresholds of a dear signal behind a filter: which cheap check, and how many tokens it lets through.

LET_THROUGH = tuple(float(share) for share in np.geomspace(0.05, 0.8, 9))
"""Shares of the tokens that a filter lets through, from few to most."""

DEAR_SIGNALS = 2
"""Signals that read logits which are tried behind filters: the fastest, were their checks free."""

SETS = 4
"""Sets of exits of each, chosen alike."""

FEW_EXITS = 8
"""With so many traced exits below L pairs are tried too."""

FILTER_EXITS = 3
"""The nearest exits before the first of a set, where a filter may stand."""


@dataclass(frozen=True)
class Filter:
    """A cheap check: the thresholds of its signal, its exit, the place of its threshold on their grid.

    through: bool [tokens], which it lets through.
    """

    family: ThresholdFamily
    exit: int
    point: int
    through: NDArray[np.bool_]

    @property
    def value(self) -> float:
        """Its threshold."""
        return self.family.value_at(self.point)


def add_filtered(
    pool: Pool, families: Mapping[str, ThresholdFamily], risk: float, targets: Sequence[float]
) -> None:
    """Add thresholds of dear signals behind filters: the fastest at each target risk, of each signal.

    Dear is what reads logits, and a filter what does not. In a batch a step asks about every token as soon as
    it asks about one, so that a filter spares nothing there, and none is tried.
    """
    if pool.pricing.batch > 1:
        return
    limits = np.array(targets) + ROUNDING
    best: dict[tuple[str, int], tuple[float, ExitPolicy]] = {}
    for family, exits in _dear(pool, families, risk):
        for filter_ in _filters(pool, families, exits[0]):
            filtered = _curve_behind(pool, family, exits, filter_.through)
            costs = _costs_behind(pool, family, exits, filter_, filtered)
            for point in filtered.cheapest(costs, limits):
                key = (family.signal.name, int(np.searchsorted(limits, filtered.risk[point])))
                if key not in best or costs[point] < best[key][0]:
                    inner = family.policy_at(exits, point)
                    behind = Filtered(filter_.family.signal.name, filter_.value, filter_.exit, inner)
                    best[key] = float(costs[point]), behind
    for (signal, _), (_, policy) in best.items():
        pool.add(pool.score(f"filtered {signal}", policy))


def _dear(
    pool: Pool, families: Mapping[str, ThresholdFamily], risk: float
) -> list[tuple[ThresholdFamily, Exits]]:
    """The signals that read logits and their sets of exits that would be fastest if checks were free."""
    below = pool.evidence.below
    sets: list[Exits] = [(exit,) for exit in below[1:]]
    if len(below) <= FEW_EXITS:
        sets += itertools.combinations(below[1:], 2)
    by_free_cost: list[tuple[float, ThresholdFamily, Exits]] = []
    for family in families.values():
        if not PROBES[family.signal.probe].reads_logits or family.signal.opens or not family.grid.points:
            continue
        for exits in sets:
            free = _free_cost(pool, family, exits, risk)
            if free is not None:
                by_free_cost.append((free, family, exits))
    by_free_cost.sort(key=lambda entry: (entry[0], entry[1].signal.name, entry[2]))
    kept: dict[str, list[tuple[ThresholdFamily, Exits]]] = {}
    for _, family, exits in by_free_cost:
        if family.signal.name in kept or len(kept) < DEAR_SIGNALS:
            kept.setdefault(family.signal.name, []).append((family, exits))
    return [tried for ones in kept.values() for tried in ones[:SETS]]


def _free_cost(pool: Pool, family: ThresholdFamily, exits: Exits, risk: float) -> float | None:
    """The cost of the fastest threshold within the risk, were its checks free; None without one."""
    curve = pool.evidence.curve(family.signal, exits)
    within = np.flatnonzero(curve.risk <= risk + ROUNDING)
    if not within.size:
        return None
    reached = 1.0 - np.cumsum(curve.shares[:, :-1], axis=1)
    probed = np.hstack([np.ones((len(reached), 1)), reached[:, :-1]]).sum(axis=1)
    costs = family.costs_of(exits, curve.shares) - probed * _check(pool, family)
    return float(costs[within].min())


def _check(pool: Pool, family: ThresholdFamily) -> float:
    return check_price(pool.pricing.costs, (family.signal.fact,))


def _filters(pool: Pool, families: Mapping[str, ThresholdFamily], first: int) -> Iterator[Filter]:
    """Cheap checks before an exit, from those that let few tokens through to those that let most."""
    evidence = pool.evidence
    exits = [exit for exit in evidence.below if exit < first][-FILTER_EXITS:]
    for family, exit in itertools.product(families.values(), exits):
        signal = family.signal
        if signal.opens or PROBES[signal.probe].reads_logits or not family.grid.points:
            continue
        ranks = family.grid.ranks[:, evidence.below.index(exit)]
        points = {min(int(np.quantile(ranks, share)), family.grid.points - 1) for share in LET_THROUGH}
        for point in sorted(points):
            yield Filter(family, exit, point, ranks <= point)


def _curve_behind(pool: Pool, family: ThresholdFamily, exits: Exits, through: NDArray[np.bool_]) -> Curve:
    """Risk and exits at every threshold, where only tokens that were let through may leave."""
    evidence, grid = pool.evidence, family.grid
    kept = np.where(through[:, None], grid.ranks, np.uint16(grid.points))
    places = [evidence.below.index(exit) for exit in exits]
    columns = evidence.columns(exits)
    return curve(replace(grid, ranks=kept), places, evidence.losses, columns, evidence.weights)


def _costs_behind(
    pool: Pool, family: ThresholdFamily, exits: Exits, filter_: Filter, found: Curve
) -> NDArray[np.float64]:
    """Mean cost of a token at every threshold: float64 [points].

    As if every token were asked, less what those are spared that were not let through, which all reach L.
    """
    spared = len(exits) * _check(pool, family) * float(np.mean(~filter_.through))
    return family.costs_of(exits, found.shares) - spared + _check(pool, filter_.family)
