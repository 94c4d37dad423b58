"""The whole search of the tuner: every family on one pool, those that are tried token by token included."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from offramp.costs.probes import FULL_HEAD
from offramp.policies.parameter_types import Exits
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.around import NoDeeper
from offramp.policies.rules.combined import Votes
from offramp.policies.rules.fixed import Never
from offramp.policies.rules.patience import Patience, Sustained
from offramp.policies.rules.short_list import AT_ALL, AT_EXITS, At, ShortList
from offramp.policies.rules.threshold import Decaying, Dynamic, Threshold, Thresholds
from offramp.scoring.documents import document_rows
from offramp.tuning.certificate import search_targets
from offramp.tuning.evolution import evolve
from offramp.tuning.pool import Pool, ScoredPolicy
from offramp.tuning.threshold_family import (
    ThresholdFamily,
    add_filtered,
    add_static,
    add_thresholds,
    exit_sets,
    holds,
    per_exit_thresholds,
    recorded_signals,
)

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
            for exits, times in itertools.product(exit_sets(pool.evidence.below), STREAKS):
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
            yield NoDeeper(Threshold(start.family.signal.name, value, start.exits))


def votes(pool: Pool, starts: Sequence[Start]) -> Members:
    """Two signals that must both pass."""
    for start, another in itertools.combinations(starts, 2):
        exits = tuple(exit for exit in start.exits if exit in another.exits)
        if exits:
            for first, second in itertools.product(start.values[1:], another.values[1:]):
                yield Votes(
                    "all",
                    (
                        Threshold(start.family.signal.name, first, exits),
                        Threshold(another.family.signal.name, second, exits),
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
    best: dict[str, ScoredPolicy] = {}
    for scored in sorted(pool.found, key=lambda scored: (scored.risk > risk, scored.cost, scored.family)):
        policy = scored.policy
        # Waiting and voting need several exits where a token may leave.
        several = len(policy.checked_exits(pool.trace.layers)) > 1
        if isinstance(policy, Threshold) and several and not families[policy.signal].signal.opens:
            best.setdefault(policy.signal, scored)
    starts = []
    for name in list(best)[:VARIED_SIGNALS]:
        family, exits = families[name], best[name].policy.checked_exits(pool.trace.layers)
        curve = family.curve_of(exits)
        costs = family.costs_of(exits, curve.shares)
        values: dict[float, None] = {}
        for boldness in BOLDNESS:
            places = np.flatnonzero(curve.risk <= boldness * risk)
            if places.size:
                values[float(family.policy_at(exits, int(places[np.argmin(costs[places])])).value)] = None
        if values:
            starts.append(Start(family, exits, tuple(values)))
    return starts


def add_replayed(
    pool: Pool, families: Mapping[str, ThresholdFamily], risk: float, targets: Sequence[float]
) -> None:
    """Try every member on some of the documents, and add the best of each family, replayed on all."""
    starts = starts_of(pool, families, risk)
    screening = pool.evidence.screening
    small = Pool(screening.trace, pool.floor, pool.pricing, screening)
    for name, members in FAMILIES.items():
        tried = [small.score(name, policy) for policy in dict.fromkeys(members(pool, starts))]
        small.found = tried
        kept = {best.policy: best for target in targets if (best := small.fastest(target)) is not None}
        for policy, scored in kept.items():
            pool.add(pool.score(scored.family, policy))


BEYOND = (1.5, 2.0, 3.0, 5.0, 10.0)
"""Targets of the search risk beyond what is allowed, in allowed risks, for the front."""

EVOLVED_AT = (0.7, 1.0)
"""Search risks, in allowed ones, of evolution; what is searched at the floor itself is rarely certified."""

SHORT_LIST = {AT_EXITS: "short list", AT_ALL: "short list everywhere"}
"""Families whose outputs are read off the short list, by where."""
SHORT_AT_FULL_DEPTH = "short list at full depth"


def search_pool(pool: Pool, risk: float, evolution_seed: int | None = None) -> None:
    """Fill a pool with the fastest members of every family at search risks up to and around `risk`.

    Beyond the families of `add_exact`: one threshold per exit (coordinate ascent), dear signals behind cheap
    filters, the families that are replayed token by token, and thresholds whose exits are read off the short
    list. evolution_seed: of a search for a signal and a threshold of each exit (see
    `offramp.tuning.evolution`), None for none.
    """
    if not pool.evidence.below:
        return
    targets = targets_around(risk)
    families = add_exact(pool, targets)
    add_per_exit(pool, families, risk)
    add_filtered(pool, families, risk, targets)
    add_replayed(pool, families, risk, targets[:: len(targets) // 6])
    add_short_list(pool, risk, targets)
    if evolution_seed is not None:
        evolved = (evolve(pool, families, share * risk, evolution_seed) for share in EVOLVED_AT)
        pool.found += [scored for scored in evolved if scored is not None]


def targets_around(risk: float) -> tuple[float, ...]:
    """Search risks at which the fastest members are kept."""
    return (*search_targets(risk), *(risk * factor for factor in BEYOND if risk * factor < 1.0))


def add_exact(pool: Pool, targets: tuple[float, ...]) -> dict[str, ThresholdFamily]:
    """Add what is exact on the grid of thresholds: static exits, and one threshold of every recorded signal.

    On single exits, the usual sets, and sets grown from the best single ones.
    """
    add_static(pool)
    return add_thresholds(pool, recorded_signals(pool.trace), targets)


def add_short_list(pool: Pool, risk: float, targets: tuple[float, ...]) -> None:
    """Outputs read off the short list, where that was recorded: at exits below L, and at L too.

    The full model with its head cut to the list, which is no early exit, and thresholds of cheap signals.
    Only under a floor on a share of tokens: the list gives no probability to what is not on it. Signals that
    need the whole head, if only to open, are left out: its product gives the whole head's token.
    """
    if pool.floor.clip is not None or not holds(pool.trace, "restricted_top1"):
        return
    never = ShortList(Never(), AT_ALL)
    evidence, pricing = pool.evidence.short_head, pool.pricing.paid_by(never)
    everywhere = Pool(evidence.trace, pool.floor, pricing, evidence)
    pool.add(replace(everywhere.score(SHORT_AT_FULL_DEPTH, Never()), policy=never))
    _add_thresholds_on_list(pool, everywhere, AT_ALL, risk, targets)
    evidence, pricing = pool.evidence.short_list, pool.pricing.paid_by(ShortList(Never()))
    _add_thresholds_on_list(
        pool, Pool(evidence.trace, pool.floor, pricing, evidence), AT_EXITS, risk, targets
    )


def _add_thresholds_on_list(pool: Pool, short: Pool, at: At, risk: float, targets: tuple[float, ...]) -> None:
    """short: the pool's documents and prices where outputs are read off the list at such exits."""
    cheap = [
        signal for signal in recorded_signals(short.trace) if not (signal.opens or signal.probe == FULL_HEAD)
    ]
    families = add_thresholds(short, cheap, targets)
    add_per_exit(short, families, risk)
    add_filtered(short, families, risk, targets)
    listed = short.evidence.listed
    for scored in short.found:
        if scored.policy not in listed:
            listed[scored.policy] = ShortList(scored.policy, at)
        family = f"{SHORT_LIST[at]}: {scored.family}"
        pool.add(ScoredPolicy(family, listed[scored.policy], scored.risk, scored.cost, scored.skip_ratio))


def add_per_exit(pool: Pool, families: dict[str, ThresholdFamily], risk: float) -> None:
    """One threshold per exit, for the fastest signals: on their best set and on all exits."""
    ordered = sorted(
        (scored for scored in pool.found if isinstance(scored.policy, Threshold)),
        key=lambda scored: (scored.risk > risk, scored.cost, scored.family),
    )
    seen: list[str] = []
    for scored in ordered:
        name = getattr(scored.policy, "signal", "")
        family = families[name]
        if name in seen or family.signal.opens:
            continue
        seen.append(name)
        if len(seen) > VARIED_SIGNALS:
            return
        best = scored.policy.checked_exits(pool.trace.layers)
        for exits in dict.fromkeys(
            exits
            for exits in (best, *exit_sets(pool.evidence.below)[1:2], pool.evidence.below)
            if len(exits) > 1
        ):
            _add(pool, family, exits, risk)


def _add(pool: Pool, family: ThresholdFamily, exits: Exits, risk: float) -> None:
    for chosen, values in per_exit_thresholds(family, exits, risk):
        if len(chosen) > 1:  # one threshold on one exit was tried exactly
            policy = Thresholds(family.signal.name, values, chosen)
            pool.add(pool.score(f"{family.signal.name}, a threshold per exit", policy))
