"""What a trace alone says: policies chosen on one half of its documents, replayed on the other."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

from offramp.costs.machine import Machine
from offramp.defaults import DELTA, FLOORS, SEED, WORTH
from offramp.errors import InputError
from offramp.kit.arguments import checked
from offramp.kit.numbers import Share, Whole
from offramp.kit.rules import Worth
from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.policy import ExitPolicy
from offramp.policies.prices import costs_of
from offramp.policies.whole_request import of_request, request_of
from offramp.scoring.documents import document_rows
from offramp.scoring.estimate import DOCUMENTS_NEEDED, Estimate
from offramp.tracing.trace import Trace
from offramp.tuning.bounds import documents_needed
from offramp.tuning.floor import Floor, make_floor
from offramp.tuning.held_out import HeldOut, measure, speed_over, unmeasured
from offramp.tuning.pool import Pool, ScoredPolicy, SearchEvidence, require_policies
from offramp.tuning.pricing import Pricing, pricing_of
from offramp.tuning.search import search_pool
from offramp.tuning.splits import split_documents
from offramp.tuning.verdict import Outcome, Verdict, decide_replayed, predicted_speed
from offramp.tuning.verdict_words import NOT_EXECUTED, refusal_words, replay_reason


@dataclass
class Halves:
    """Documents for choosing and for judging, and the searches made on the former.

    Verdict, ranking and machines choose from the same searches, so that they cannot contradict each other;
    what does not depend on prices is computed once for all of them.
    """

    choosing: Trace
    judging: Trace
    seed: int
    _evidence: list[SearchEvidence] = field(init=False, repr=False, default_factory=list)
    _pools: list[Pool] = field(init=False, repr=False, default_factory=list)

    def searched(self, floor: Floor, pricing: Pricing) -> Pool:
        """Every family's fastest members around a floor, on the documents for choosing."""
        for pool in self._pools:
            if pool.floor == floor and pool.pricing.same_prices(pricing):
                return pool
        pool = Pool(self.choosing, floor, pricing, self._evidence_for(floor))
        search_pool(pool, floor.risk)
        self._pools.append(pool)
        return pool

    def _evidence_for(self, floor: Floor) -> SearchEvidence:
        for evidence in self._evidence:
            if evidence.serves(floor):
                return evidence
        self._evidence.append(SearchEvidence(self.choosing, floor))
        return self._evidence[-1]


def halves_of(trace: Trace, seed: int = SEED) -> Halves:
    """The two halves, documents that exit heads were fitted on left out.

    Raises PolicyError for a trace without exits below L, InputError for fewer than two documents.
    """
    require_policies(trace)
    choosing, judging = split_documents(trace, seed)
    if not len(choosing):
        raise InputError(
            "one document cannot both choose policies and judge them",
            where=str(trace.folder or "the trace"),
            fix="trace at least 40 documents",
        )
    return Halves(trace.subset(choosing), trace.subset(judging), seed)


@checked
def judge(
    trace: Trace,
    floors: tuple[Share, ...] = FLOORS,
    worth: Worth = WORTH,
    delta: Share = DELTA,
    seed: Whole = SEED,
    machine: Machine | None = None,
    *,
    halves: Halves | None = None,
) -> tuple[Verdict, ...]:
    """What a trace alone says at each floor on agreement, at batch 1: seconds on a machine, else bytes moved.

    The policy is the fastest that `offramp.tuning.search.search_pool` finds on one half of the documents
    (split by `seed`; halves: the trace's, if they were searched before); its replay is measured on the other,
    with 95 % bootstrap intervals over documents. It is credited only with what it adds to the fastest decoder
    at that floor which leaves no layer out: the full model, or the full model with its output head cut to the
    short list. A replay only proposes: by `decide` it can show that early exit does not pay, never that it
    pays; `settle` adds what was executed and measured. Of a model with an encoder the speed of requests
    decides, and nothing is searched if their ceiling refuses (`WholeRequest`).

    Raises InputError for a floor or delta outside (0, 1), a negative worth, or a trace without tokens.

    >>> [verdict.floor for verdict in offramp.judge(trace)]
    [0.99, 0.95, 0.9]
    """
    pricing = pricing_of(trace, machine)
    seed = seed if halves is None else halves.seed
    in_flops = Pricing(costs_of(trace, "flops"), "FLOPs", "counted from the model's shape, batch 1")
    fit, report = split_documents(trace, seed)
    why, request = _why_unjudged(trace, len(fit)), request_of(trace, machine)
    refused = refusal_words(request, worth)

    def verdict(
        floor: float, held: HeldOut, without: ExitPolicy, credit: Estimate, flops: Estimate, fitted: float
    ) -> Verdict:
        """What a replay says at a floor of the policy that was chosen; fitted: its agreement where it was."""
        speedup = held.net_speedup
        decoding = predicted_speed(speedup, pricing.machine)
        credit = of_request(request, credit, speedup.value)
        outcome = decide_replayed(held.policy, credit, pricing.machine, worth)
        return Verdict(
            floor=floor,
            worth=worth,
            outcome=outcome,
            reason="",
            missing=() if outcome == "does not pay" else (NOT_EXECUTED,),
            policy=held.policy,
            kv=None,
            certificate=None,
            executed_agreement=None,
            speed=of_request(request, decoding),
            replayed_policy=held.policy,
            agreement=held.agreement,
            skip_ratio=held.skip_ratio,
            net_speedup=speedup,
            net_speedup_flops=flops,
            fit_agreement=fitted,
            fit_documents=len(fit),
            report_documents=len(report),
            documents_needed=documents_needed(1.0 - floor, delta),
            basis=pricing.machine,
            reference_agreement=held.reference_agreement,
            gain=held.gain,
            without=str(without),
            credit=credit,
            request=request,
            decoding=None if request is None else decoding,
        )

    if refused:
        why = "the ceiling of a request is too low"
    if why is not None:
        undefined = Estimate(None, undefined=why)
        transformed = trace.reference_top1 is not None
        nothing = unmeasured(PLAIN_DECODING, why, pricing.plain, transformed=transformed)
        outcome: Outcome = "time" if len(fit) else "data"
        settled: dict[str, Any] = {"reason": f"Nothing was judged: {why}.", "missing": (why,), "credit": None}
        if refused:
            outcome, settled = "does not pay", {"reason": refused, "missing": (), "credit": None}
        unjudged = (
            verdict(floor, nothing, PLAIN_DECODING, undefined, undefined, math.nan) for floor in floors
        )
        return tuple(replace(undecided, outcome=outcome, **settled) for undecided in unjudged)
    halves = halves or halves_of(trace, seed)
    verdicts = []
    for floor in floors:
        checked = make_floor({"agreement": floor})
        best, without = choose(halves.searched(checked, pricing), checked)
        held = measure(halves.judging, best.policy, pricing, checked, seed)
        credit = speed_over(halves.judging, best.policy, without.policy, pricing, seed)
        flops = measure(halves.judging, best.policy, in_flops, checked, seed).net_speedup
        proposed = verdict(floor, held, without.policy, credit, flops, 1.0 - best.risk)
        verdicts.append(replace(proposed, reason=replay_reason(proposed)))
    return tuple(verdicts)


def choose(pool: Pool, floor: Floor) -> tuple[ScoredPolicy, ScoredPolicy]:
    """The fastest early exit of a search within a floor, and the fastest policy that leaves no layer out.

    The latter is the full model, or its head cut to the short list. Early exit is credited only with what it
    adds to that: the former is the full model if none beats it.
    """
    plain = pool.full_model()
    cut = pool.fastest(floor.risk, full_depth=True)
    without = plain if cut is None or cut.cost >= plain.cost else cut
    best = pool.fastest(floor.risk, full_depth=False)
    return plain if best is None or best.cost >= without.cost else best, without


def _why_unjudged(trace: Trace, fit_documents: int) -> str | None:
    """Why no policy can be chosen and judged on this trace, None if one can."""
    if not fit_documents:
        count = document_rows(trace).count
        return (
            f"{count} document{'' if count == 1 else 's'} cannot both choose a policy and judge it; trace at "
            f"least {2 * DOCUMENTS_NEEDED}"
        )
    if len(trace.exits) == 1 and trace.layers > 1:
        return "no exit before the last was traced, so no policy could be replayed; trace more exits"
    return None
