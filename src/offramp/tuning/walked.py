"""Families that are walked token by token: patience, sustained, decaying, dynamic, monotone, votes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.around import Monotone
from offramp.policies.rules.combined import Votes
from offramp.policies.rules.patience import Patience, Sustained
from offramp.policies.rules.threshold import Decaying, Dynamic, Threshold
from offramp.scoring.documents import document_rows
from offramp.tuning.exit_sets import Exits, exit_sets, holds
from offramp.tuning.families import ThresholdFamily
from offramp.tuning.pool import Pool, Scored

# Signals whose best threshold rule is varied, the fastest first.
VARIED_SIGNALS = 3
# Search risks, in allowed risks, whose thresholds are varied: a rule that waits may be bolder.
BOLDNESS = (0.5, 1.0, 2.0, 5.0)
STREAKS = (1, 2, 3, 4, 6, 8)
DECAY = 4.0


@dataclass(frozen=True)
class Start:
    """A threshold rule to vary: a signal on a set of exits, at thresholds from cautious to bold."""

    family: ThresholdFamily
    exits: Exits
    values: tuple[float, ...]


Members = Iterator[ExitPolicy]


def patience(pool: Pool, starts: Sequence[Start]) -> Members:
    """The same prediction several times in a row, of the full and of the restricted head."""
    for fact in ("top1", "restricted_top1"):
        if holds(pool.trace, fact):
            for exits, times in itertools.product(exit_sets(pool.below), STREAKS):
                if len(exits) > times:
                    yield Patience(times, exits, fact)


def sustained(pool: Pool, starts: Sequence[Start]) -> Members:
    """A signal that passes several times in a row."""
    for start in starts:
        for value, times in itertools.product(start.values, (2, 3)):
            if len(start.exits) > times:
                yield Sustained(start.family.signal.name, value, times, start.exits)


def decaying(pool: Pool, starts: Sequence[Start]) -> Members:
    """A threshold that loosens with the position."""
    length = max(1, int(np.median(document_rows(pool.trace).lengths)))
    for start in starts:
        for value in start.values:
            yield Decaying(start.family.signal.name, value, start.exits, DECAY, length)


def dynamic(pool: Pool, starts: Sequence[Start]) -> Members:
    """A threshold that follows the position, or the entropy of the tokens so far; slopes of three digits."""
    length = float(np.median(document_rows(pool.trace).lengths))
    for start in starts:
        spread = float(np.ptp(start.values)) or 0.1 * abs(start.values[0])
        for value, slope in itertools.product(start.values, (-spread, spread)):
            name = start.family.signal.name
            by_position, by_entropy = float(f"{slope / length:.3g}"), float(f"{slope:.3g}")
            yield Dynamic(name, value, start.exits, "position", by_position, length / 2.0)
            if holds(pool.trace, "entropy"):
                yield Dynamic(name, value, start.exits, "running_entropy", by_entropy, 2.0)


def monotone(pool: Pool, starts: Sequence[Start]) -> Members:
    """No token leaves deeper than the one before."""
    for start in starts:
        for value in start.values[:1]:
            yield Monotone(Threshold(start.family.signal.name, value, start.exits))


def votes(pool: Pool, starts: Sequence[Start]) -> Members:
    """Two signals that must both pass."""
    for one, other in itertools.combinations(starts, 2):
        exits = tuple(exit for exit in one.exits if exit in other.exits)
        if exits:
            for first, second in itertools.product(one.values[1:], other.values[1:]):
                yield Votes(
                    "all",
                    (
                        Threshold(one.family.signal.name, first, exits),
                        Threshold(other.family.signal.name, second, exits),
                    ),
                )


FAMILIES: dict[str, Callable[[Pool, Sequence[Start]], Members]] = {
    "patience": patience,
    "sustained": sustained,
    "decaying": decaying,
    "dynamic": dynamic,
    "monotone": monotone,
    "votes": votes,
}


def starts_of(pool: Pool, families: Mapping[str, ThresholdFamily], risk: float) -> list[Start]:
    """The threshold rules to vary: the fastest signals on the sets of exits where they were fastest."""
    best: dict[str, Scored] = {}
    for scored in sorted(pool.found, key=lambda one: (one.risk > risk, one.cost, one.family)):
        policy = scored.policy
        # Waiting and voting need several exits where a token may leave.
        several = len(policy.checked_exits(pool.trace.layers)) > 1
        if isinstance(policy, Threshold) and several and not families[policy.signal].signal.opens:
            best.setdefault(policy.signal, scored)
    starts = []
    for name in list(best)[:VARIED_SIGNALS]:
        family, exits = families[name], best[name].policy.checked_exits(pool.trace.layers)
        found = family.curve_of(exits)
        costs = family.costs_of(exits, found.shares)
        values: dict[float, None] = {}
        for boldness in BOLDNESS:
            places = np.flatnonzero(found.risk <= boldness * risk)
            if places.size:
                values[float(family.policy_at(exits, int(places[np.argmin(costs[places])])).value)] = None
        if values:
            starts.append(Start(family, exits, tuple(values)))
    return starts


def add_walked(
    pool: Pool, families: Mapping[str, ThresholdFamily], risk: float, targets: Sequence[float]
) -> None:
    """Try every member on some of the documents, and add the best of each family, walked over all."""
    starts = starts_of(pool, families, risk)
    screening = pool.evidence.screening
    small = Pool(screening.trace, pool.floor, pool.pricing, screening)
    for name, members in FAMILIES.items():
        tried = [small.score(name, policy) for policy in dict.fromkeys(members(pool, starts))]
        small.found = tried
        kept = {best.policy: best for target in targets if (best := small.fastest(target)) is not None}
        for policy, scored in kept.items():
            pool.add(pool.score(scored.family, policy))
