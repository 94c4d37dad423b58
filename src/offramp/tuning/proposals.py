"""Candidates for certificates: what the searches found, re-calibrated and re-ordered by reruns."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from offramp.policies.charge import Charge, run_of
from offramp.policies.cost_breakdown import PriceAt
from offramp.policies.policy import ExitPolicy
from offramp.tuning.baseline import PLAIN, Baseline
from offramp.tuning.certificate import order_places
from offramp.tuning.fixed_sequence import Deadline, Executor, Proposal
from offramp.tuning.pool import ROUNDING, Pool, ScoredPolicy, front_of

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

HALF = 0.5
"""A candidate gains at least this share of what the boldest at its floor gains: a test takes documents."""

FORETOLD = 0.8
"""Share of the worth that a candidate has to gain by prediction. A model is surer of its own text than of a
given one, and leaves more often (SmolLM2: 1.051 and 1.084 x were measured as 1.127 and 1.209);
and prices differ by 1 % from one profile to the next."""

CHALLENGERS = 4
"""Policies that gain what is worth it and are rerun to see which of them loses least."""


PricesOf = Callable[[str], PriceAt]
"""Prices of a step by its rows, by the strategy for K and V."""

Ladder = tuple[ScoredPolicy, ...]
"""One rule on one set of exits, its thresholds from cautious to bold: risk rises, cost falls."""


@dataclass(frozen=True)
class Proposed:
    """The candidates at one floor, as the search documents alone propose them."""

    candidates: tuple[Proposal, ...]
    """From cautious to bold."""
    reach: float | None
    """Predicted speed over the best decoder without exits, of the fastest that keeps the floor: as rerun, or
    in replay where nothing was rerun; None without any."""
    baseline: Baseline
    """The best that keeps the floor."""
    complete: bool
    """Whether the reruns that were asked for were made before their time was used up."""


@dataclass
class Proposals:
    """Reruns of what the searches found, of all strategies that the model can decode with; floors share them.

    pools: of one trace, kind of floor and pricing. documents: the search documents. steps: of the rerun risk,
    each with one candidate at most. reruns: forward passes made.
    """

    pools: Sequence[Pool]
    executor: Executor
    prices: PricesOf
    documents: NDArray[np.int64]
    clock: Deadline
    steps: int = TARGETS
    baselines: Sequence[Baseline] = ()
    """That were timed before."""
    reruns: int = field(default=0, init=False)
    cut_short: bool = field(default=False, init=False)
    """Whether time ended before all reruns were made that were asked for."""
    found: dict[tuple[ExitPolicy, str], Proposal] = field(default_factory=dict, init=False)
    _by_strategy: dict[str, list[list[ScoredPolicy]]] = field(default_factory=dict, init=False, repr=False)

    def calibrate(self, risk: float) -> None:
        """Rerun what may be fastest at a floor that allows this risk.

        Policies that remember earlier tokens are left out where K and V are approximate: rerunning one means
        decoding token by token.
        """
        approximate = []
        for kv in self.executor.strategies:
            decodable = itertools.chain.from_iterable(self._decodable(kv))
            cautious = min(decodable, key=lambda scored: (scored.risk, scored.cost), default=None)
            if cautious is None or self.clock.over:
                continue
            if self._keep(cautious, kv).free:
                self._rerun_front(kv, risk)
            else:
                approximate.append(kv)
        last = self.reruns + RERUNS
        for number, kv in enumerate(approximate):
            self._calibrate(kv, risk, (last - self.reruns) // (len(approximate) - number))
        self.cut_short |= self.clock.over

    def challenge(self, worth: float, risks: Sequence[float]) -> None:
        """Rerun the most cautious policies, as replayed, whose speed over a best baseline is worth it.

        risks: that floors allow, each with a best baseline of its own.

        They may lose more than any floor allows: one of them is decoded where nothing that keeps a floor
        could pay, so that what is refuted was tried.
        """
        self._cut_head()
        costs = sorted({self._best_baseline(risk).cost for risk in risks}, reverse=True)
        for kv, cost in itertools.product(self.executor.strategies, costs):
            paying = [
                scored
                for scored in itertools.chain.from_iterable(self._decodable(kv))
                if cost * self._plain > (1.0 + worth) * scored.cost
                and not (scored.policy.remembers or scored.policy.full_depth)
            ]
            for scored in front_of(paying)[:CHALLENGERS]:
                if self.clock.over:
                    self.cut_short = True
                    return
                self._keep(scored, kv)

    def replayed_reach(self, risk: float) -> float | None:
        """Predicted speed over the best decoder without exits of the fastest that keeps the floor in replay.

        A rerun keeps less than a replay: where this is not worth it, rerunning thresholds would find nothing.
        None where nothing keeps it.
        """
        allowed = [
            scored.cost / self._plain
            for pool in self.pools
            for scored in pool.found
            if scored.risk <= risk + ROUNDING and not scored.policy.full_depth
        ]
        return self._best_baseline(risk).cost / min(allowed) if allowed else None

    def _cut_head(self) -> None:
        """Note what the output head cut to the short list loses at full depth; it has no K and V to fill."""
        for kv in self.executor.strategies:
            for alike in self._decodable(kv):
                if alike[0].policy.full_depth and (alike[0].policy, kv) not in self.found:
                    self._keep(alike[0], kv)
                    return

    def at(
        self,
        risk: float,
        worth: float | None,
        stricter: Sequence[Proposal] = (),
        conceivable: float = math.inf,
    ) -> Proposed:
        """The candidates at a floor that allows this risk.

        worth: None for the fastest at the floor, exits or not. Else a gain in speed over the best decoder
        without exits (the full model, or its head cut to the short list where that keeps the floor): only
        what leaves layers out and could gain so much is a candidate; where nothing that keeps the floor
        could, the most cautious that could is tried, to be refuted, behind the fastest that keeps the floor
        if that is predicted to gain what is `conceivable`. stricter: candidates of stricter floors, which are
        candidates here too where they are still worth it: what keeps a floor keeps a looser one, whose best
        baseline may be faster.

        At every target of the rerun risk the fastest, over all strategies, unless it gains less than half of
        what the boldest gains; the most cautious one that is worth it stays.
        """
        usable = [
            proposal for proposal in self.found.values() if worth is None or not proposal.policy.full_depth
        ]
        baseline = PLAIN if worth is None else self._best_baseline(risk)
        without = baseline.cost

        def gain(proposal: Proposal) -> float:
            return without / proposal.relative_cost - 1.0

        targets = tuple(float(target) for target in np.linspace(0.0, risk, self.steps + 1)[-self.steps :])
        own = _in_order(usable, without, risk, targets)
        reach = 1.0 + gain(own[-1]) if own else self.replayed_reach(risk)
        least = max(worth or 0.0, HALF * gain(own[-1])) if own else 0.0
        nearest = [proposal for proposal in own[-1:] if gain(proposal) >= conceivable]
        worthy = [] if worth is None else [proposal for proposal in own if gain(proposal) >= worth]
        own = [*worthy[:1], *(proposal for proposal in own if gain(proposal) >= least)]
        if worth is not None and not own:
            # Should the most cautious that could pay pass, those that are faster are next.
            paying = [proposal for proposal in usable if gain(proposal) >= worth]
            own = [*nearest, *_in_order(paying, without, 1.0)][: self.steps]
        kept = [one for one in stricter if worth is None or gain(one) >= min(worth, conceivable)]
        candidates = {id(proposal): proposal for proposal in (*kept, *own)}
        ordered = sorted(
            candidates.values(), key=lambda candidate: (candidate.risk, -candidate.relative_cost)
        )
        return Proposed(tuple(ordered), reach, baseline, complete=not self.cut_short)

    def _best_baseline(self, risk: float) -> Baseline:
        """The fastest at a floor that allows this risk: plain, the head cut to the list, or a timed one."""
        cut = [
            Baseline(str(proposal.policy), proposal.relative_cost, 1.0 - proposal.risk)
            for proposal in self.found.values()
            if proposal.policy.full_depth
        ]
        keeping = [one for one in (*cut, *self.baselines) if 1.0 - one.kept <= risk + ROUNDING]
        return min([PLAIN, *keeping], key=lambda baseline: baseline.cost)

    @property
    def _plain(self) -> float:
        return self.pools[0].pricing.plain

    @functools.cached_property
    def _alike(self) -> list[list[ScoredPolicy]]:
        """What is faster than plain in the search, together what differs in its thresholds alone."""
        families: dict[Hashable, list[ScoredPolicy]] = {}
        layers = self.pools[0].trace.layers
        every = {scored.policy: scored for pool in self.pools for scored in pool.found}
        for scored in every.values():
            if scored.cost < self._plain:
                key = (scored.family, tuple(scored.policy.needs(layers)), scored.policy.short_list)
                families.setdefault(key, []).append(scored)
        return list(families.values())

    def _decodable(self, kv: str) -> list[list[ScoredPolicy]]:
        """Those that can be decoded so; the thresholds do not matter for that. Asked once of a strategy."""
        if kv not in self._by_strategy:
            self._by_strategy[kv] = [alike for alike in self._alike if self.executor.can(alike[0].policy, kv)]
        return self._by_strategy[kv]

    def _rerun_front(self, kv: str, risk: float) -> None:
        """Exact K and V: replayed risks hold, and only prices differ."""
        for scored in front_of(itertools.chain.from_iterable(self._decodable(kv))):
            if scored.risk <= risk + ROUNDING:
                self._keep(scored, kv)

    def _calibrate(self, kv: str, risk: float, budget: int) -> None:
        """Rerun thresholds of several ladders until the budget is spent: the most promising one first.

        For each aim a ladder is narrowed down between the boldest threshold whose rerun risk is within it and
        the most cautious one that is not; next comes the ladder whose unknown part reaches lowest in cost.
        """
        ladders = self._ladders(kv, risk, max(1, budget // RERUNS_OF_A_LADDER))
        known = [
            {
                rung: self.found[scored.policy, kv]
                for rung, scored in enumerate(ladder)
                if (scored.policy, kv) in self.found
            }
            for ladder in ladders
        ]
        before = self.reruns
        for number, share in enumerate(AIMS, start=1):
            aim, last = share * risk, before + budget * number // len(AIMS)
            while self.reruns < last and not self.clock.over:
                place = _most_promising(ladders, known, aim)
                if place is None:
                    break
                rung = _next_rung(ladders[place], known[place], aim)
                known[place][rung] = self._keep(ladders[place][rung], kv)

    def _ladders(self, kv: str, risk: float, most: int) -> list[Ladder]:
        """The fastest ladders within the allowed replayed risk, each beginning at another exit.

        How much a rerun differs from the replay depends on how early tokens leave, so that ladders of one
        kind would be wrong together.
        """
        layers = self.pools[0].trace.layers
        ladders = [tuple(front_of(alike)) for alike in self._decodable(kv) if not alike[0].policy.remembers]
        reached = {
            ladder: min((rung.cost for rung in ladder if rung.risk <= risk + ROUNDING), default=np.inf)
            for ladder in ladders
        }
        chosen: dict[int, Ladder] = {}
        for ladder in sorted(ladders, key=lambda ladder: (reached[ladder], str(ladder[0].policy))):
            first = min(ladder[0].policy.leaves_at(layers), default=layers)
            if np.isfinite(reached[ladder]):
                chosen.setdefault(first, ladder)
        return list(chosen.values())[:most]

    def _keep(self, scored: ScoredPolicy, kv: str) -> Proposal:
        """Rerun a policy, unless that was done, and note what it does."""
        key = (scored.policy, kv)
        if key not in self.found:
            rerun = self.executor.rerun(scored.policy, kv, self.documents)
            self.reruns += not rerun.free
            run = run_of(rerun.trace, scored.policy, rerun.decisions)
            paid = Charge.of(run, kv).breakdown(self.prices(kv))
            cost, plain = paid.per_token, paid.plain_per_token
            risk = float(np.mean(rerun.losses_at(self.pools[0].floor.kind)))
            self.found[key] = Proposal(scored.policy, kv, scored.risk, risk, cost, plain, rerun.free)
        return self.found[key]


def _in_order(
    proposals: Sequence[Proposal], without: float, risk: float, targets: Sequence[float] | None = None
) -> list[Proposal]:
    """Some of them from cautious to bold, each faster than all before it (see `order_places`)."""
    risks = np.array([proposal.risk for proposal in proposals])
    costs = np.array([proposal.relative_cost for proposal in proposals])
    places = order_places(risks, costs, without, risk, targets=targets, step=WORTH_A_TEST)
    return [proposals[place] for place in places]


def _bracket(ladder: Ladder, known: dict[int, Proposal], aim: float) -> tuple[int, int]:
    """The boldest rung known to be within the aim, and the next above it known not to be."""
    low = max((rung for rung, proposal in known.items() if proposal.risk <= aim + ROUNDING), default=-1)
    high = min(
        (rung for rung, proposal in known.items() if rung > low and proposal.risk > aim), default=len(ladder)
    )
    return low, high


def _most_promising(ladders: list[Ladder], known: list[dict[int, Proposal]], aim: float) -> int | None:
    """The ladder whose rungs in question reach lowest in cost, None if no rung could be the fastest."""
    best = min(
        (proposal.cost for found in known for proposal in found.values() if proposal.risk <= aim + ROUNDING),
        default=np.inf,
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
        nearest = known[min(known, key=lambda rung: (abs(rung - middle), rung))]
        if nearest.risk > 0.0 and nearest.replayed > 0.0:
            wanted = aim * nearest.replayed / nearest.risk
        else:
            wanted = ladder[inside[len(inside) // 2]].risk
    return min(inside, key=lambda rung: (abs(ladder[rung].risk - wanted), rung))
