"""Candidates for a certificate: what the search found, re-calibrated and re-ordered by reruns."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from offramp.tuning.certificate import order_places
from offramp.tuning.executor import Clock, Executor, Proposal
from offramp.tuning.pool import ROUNDING, Pool, Scored, front_of
from offramp.tuning.strategy_costs import StrategyCosts

RERUNS = 24
"""Forward passes over the search documents in all."""

RERUNS_OF_A_LADDER = 4
"""Of these on the thresholds of one signal and set of exits, about."""

AIMS = (0.5, 1.0)
"""Shares of the allowed risk at which thresholds are sought, as rerun: well below is soon certified."""

TARGETS = 6
"""Steps of the rerun risk, from 0 to the allowed one, at which the fastest becomes a candidate."""

WORTH_A_TEST = 0.01
"""A candidate saves at least this share of the seconds of a more cautious one: a test takes documents."""


Ladder = tuple[Scored, ...]
"""One rule on one set of exits, its thresholds from cautious to bold: risk rises, cost falls."""


@dataclass
class Proposals:
    """Reruns of a pool's policies, of all strategies that the model can decode with.

    documents: the search documents. steps: of the rerun risk, each with one candidate at most. reruns:
    forward passes made.
    """

    pool: Pool
    executor: Executor
    costs: StrategyCosts
    documents: NDArray[np.int64]
    risk: float
    clock: Clock
    steps: int = TARGETS
    reruns: int = field(default=0, init=False)
    found: list[Proposal] = field(default_factory=list, init=False)

    def propose(self) -> list[Proposal]:
        """The candidates in the order of their test: from cautious to bold, each faster than all before it.

        At every target of the rerun risk the fastest, over all strategies; it depends on the search documents
        alone. Policies that remember earlier tokens are left out where K and V are approximate: rerunning one
        means decoding token by token.
        """
        approximate = []
        for kv in self.executor.strategies:
            decodable = itertools.chain.from_iterable(self._decodable(kv))
            cautious = min(decodable, key=lambda one: (one.risk, one.cost), default=None)
            if cautious is None or self.clock.over:
                continue
            if self._keep(cautious, kv).free:
                self._rerun_front(kv)
            else:
                approximate.append(kv)
        for number, kv in enumerate(approximate):
            self._calibrate(kv, (RERUNS - self.reruns) // (len(approximate) - number))
        risks = np.array([one.risk for one in self.found])
        costs = np.array([one.relative_cost for one in self.found])
        targets = tuple(
            float(target) for target in np.linspace(0.0, self.risk, self.steps + 1)[-self.steps :]
        )
        places = order_places(risks, costs, 1.0, self.risk, targets=targets, step=WORTH_A_TEST)
        return [self.found[place] for place in places]

    @functools.cached_property
    def _alike(self) -> list[list[Scored]]:
        """What is faster than plain in the search, together what differs in its thresholds alone."""
        found: dict[Hashable, list[Scored]] = {}
        layers, plain = self.pool.trace.layers, self.pool.pricing.plain
        for one in self.pool.found:
            if one.cost < plain:
                key = (one.family, tuple(one.policy.needs(layers)), one.policy.short_list)
                found.setdefault(key, []).append(one)
        return list(found.values())

    def _decodable(self, kv: str) -> Iterator[list[Scored]]:
        """Those that can be decoded so; the thresholds do not matter for that."""
        return (alike for alike in self._alike if self.executor.can(alike[0].policy, kv))

    def _rerun_front(self, kv: str) -> None:
        """Exact K and V: replayed risks hold, and only prices differ."""
        for scored in front_of(itertools.chain.from_iterable(self._decodable(kv))):
            if scored.risk <= self.risk + ROUNDING:
                self._keep(scored, kv)

    def _calibrate(self, kv: str, budget: int) -> None:
        """Rerun thresholds of several ladders until the budget is spent: the most promising one first.

        For each aim a ladder is narrowed down between the boldest threshold whose rerun risk is within it and
        the most cautious one that is not; next comes the ladder whose unknown part reaches lowest in cost.
        """
        ladders = self._ladders(kv, max(1, budget // RERUNS_OF_A_LADDER))
        known: list[dict[int, Proposal]] = [{} for _ in ladders]
        before = self.reruns
        for number, share in enumerate(AIMS, start=1):
            aim, last = share * self.risk, before + budget * number // len(AIMS)
            while self.reruns < last and not self.clock.over:
                place = _most_promising(ladders, known, aim)
                if place is None:
                    break
                rung = _next_rung(ladders[place], known[place], aim)
                known[place][rung] = self._keep(ladders[place][rung], kv)

    def _ladders(self, kv: str, most: int) -> list[Ladder]:
        """The fastest ladders within the allowed replayed risk, each beginning at another exit.

        How much a rerun differs from the replay depends on how early tokens leave, so that ladders of one
        kind would be wrong together.
        """
        layers = self.pool.trace.layers
        ladders = [tuple(front_of(alike)) for alike in self._decodable(kv) if not alike[0].policy.remembers]
        reached = {
            ladder: min((one.cost for one in ladder if one.risk <= self.risk + ROUNDING), default=np.inf)
            for ladder in ladders
        }
        chosen: dict[int, Ladder] = {}
        for ladder in sorted(ladders, key=lambda ladder: (reached[ladder], str(ladder[0].policy))):
            first = min(ladder[0].policy.leaves_at(layers), default=layers)
            if np.isfinite(reached[ladder]):
                chosen.setdefault(first, ladder)
        return list(chosen.values())[:most]

    def _keep(self, scored: Scored, kv: str) -> Proposal:
        """Rerun a policy and note what it does."""
        found = self.executor.rerun(scored.policy, kv, self.documents)
        self.reruns += not found.free
        cost, plain = self.costs.of_token(found.trace, scored.policy, kv, found.decisions)
        risk = float(np.mean(found.losses_at(self.pool.floor.kind)))
        proposal = Proposal(scored.policy, kv, scored.risk, risk, cost, plain, found.free)
        self.found.append(proposal)
        return proposal


def _bracket(ladder: Ladder, known: dict[int, Proposal], aim: float) -> tuple[int, int]:
    """The boldest rung known to be within the aim, and the next above it known not to be."""
    low = max((rung for rung, one in known.items() if one.risk <= aim + ROUNDING), default=-1)
    high = min((rung for rung, one in known.items() if rung > low and one.risk > aim), default=len(ladder))
    return low, high


def _most_promising(ladders: list[Ladder], known: list[dict[int, Proposal]], aim: float) -> int | None:
    """The ladder whose rungs in question reach lowest in cost, None if no rung could be the fastest."""
    best = min(
        (one.cost for found in known for one in found.values() if one.risk <= aim + ROUNDING), default=np.inf
    )
    open_ladders = {}
    for place, (ladder, found) in enumerate(zip(ladders, known, strict=True)):
        low, high = _bracket(ladder, found, aim)
        if high - low > 1 and ladder[high - 1].cost < best:
            open_ladders[place] = ladder[high - 1].cost
    return min(open_ladders, key=open_ladders.__getitem__, default=None)


def _next_rung(ladder: Ladder, known: dict[int, Proposal], aim: float) -> int:
    """The rung in question whose rerun risk is expected to be nearest to the aim.

    Expected from the nearest rung that was rerun, as if its rerun risk were in proportion to the replayed
    one; at first as if a rerun doubled it.
    """
    low, high = _bracket(ladder, known, aim)
    inside = range(low + 1, high)
    wanted = aim / 2.0
    if known:
        middle = (low + high) / 2.0
        one = known[min(known, key=lambda rung: (abs(rung - middle), rung))]
        if one.risk > 0.0 and one.replayed > 0.0:
            wanted = aim * one.replayed / one.risk
        else:
            wanted = ladder[inside[len(inside) // 2]].risk
    return min(inside, key=lambda rung: (abs(ladder[rung].risk - wanted), rung))
