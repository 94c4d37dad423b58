"""The tuner with a model: policy and K,V strategy chosen by what executes, certified on decoded documents."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from offramp.policies.binding import text_caveat
from offramp.policies.kv_cost import STRATEGIES
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.fixed import Never
from offramp.scoring.documents import document_rows
from offramp.scoring.estimate import Estimate, document_bootstrap
from offramp.tuning.answers import Decoded, executed_answer
from offramp.tuning.bounds import Losses, fewest_documents
from offramp.tuning.certificate import Candidate, Certificate
from offramp.tuning.executor import (
    DOCUMENTS_AT_ONCE,
    Clock,
    Executor,
    FixedSequence,
    OnDocuments,
    Proposal,
    Trial,
    chosen_trial,
)
from offramp.tuning.floor import REFERENCE, FloorKind
from offramp.tuning.held_out import DRAWS, HeldOut, unmeasured
from offramp.tuning.job import Job
from offramp.tuning.pool import Pool, front_of
from offramp.tuning.pricing import KEY_VALUE, DecisionCounts
from offramp.tuning.proposals import TARGETS, Proposals
from offramp.tuning.strategy_costs import StrategyCosts
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import AT_HAND

PER_NEEDED = 4
"""Documents that a candidate may be decoded on, over those that are needed if none loses anything."""

FRESH = 32
"""Documents that the chosen policy is decoded on once more, which did not choose it, if time allows."""

DRAFTERS = 12
"""Policies whose outputs are tried as drafts, spread over the front."""


EXECUTED_FIELDS: dict[FloorKind, str] = {
    "agreement": "executed_agreement",
    REFERENCE: "executed_reference_agreement",
}
"""Of `Tuned`: where the share that was kept as executed stands, by the kind of floor."""


@dataclass(frozen=True)
class Limits:
    """How much may be decoded.

    documents: for one candidate's certificate, at most; None for four times the fewest. seconds: for reruns
    and decoding together; None for as long as it takes. candidates: tested at most, spread from cautious to
    bold over the allowed risk; None for six. on_documents: told of each candidate's progress.
    """

    documents: int | None = None
    seconds: float | None = None
    candidates: int | None = None
    on_documents: OnDocuments = lambda done, planned: None


RERUN_SHARE = 0.35
"""Of the time given, reruns take so much at most: the rest is for decoding."""


def tune_by_execution(job: Job, executor: Executor, limits: Limits) -> Tuned:
    """Search on the trace, rerun what it proposes, and test that on documents that are really decoded.

    At a floor that the full model itself may break, it is tested first, as the most cautious candidate: where
    it does not pass, no other is tried.
    """
    clock = Clock(limits.seconds)
    needed, planned = _documents(job, executor, limits)
    pool = job.search()
    costs = StrategyCosts(job.trace, job.machine)
    proposals: list[Proposal] = []
    alone: list[Trial] = []
    sequence = FixedSequence(
        executor, job.floor.risk, job.delta, job.rule, planned, clock, limits.on_documents
    )
    if pool is not None and planned >= needed:
        if job.floor.kind == REFERENCE:
            alone = sequence.run([_full_model(job, pool)])
        if all(trial.passed for trial in alone):
            search = job.roles.search
            reruns = Clock(None if limits.seconds is None else RERUN_SHARE * limits.seconds)
            steps = limits.candidates or TARGETS
            proposals = Proposals(pool, executor, costs, search, job.floor.risk, reruns, steps).propose()
    trials = sequence.run(proposals, alone)
    out_of_time = clock.over
    chosen = chosen_trial(trials)
    policy: ExitPolicy = Never() if chosen is None else chosen.proposal.policy
    looked_at = max((trial.documents for trial in trials), default=0)
    agreement = None
    if chosen is not None:
        agreement = _executed_agreement(job, executor, chosen.proposal, looked_at, clock)
    certificate = _certificate(job, executor, trials, chosen, needed, planned)
    candidates = _candidates(proposals, trials)
    by_itself = _candidates([trial.proposal for trial in alone], trials)
    contender = _lossless(job, executor, costs, pool, by_itself)
    held = _held(job, executor, costs, None if chosen is None else chosen.proposal)
    decoded = Decoded(
        limited=limits.documents is not None and planned == limits.documents < executor.documents,
        left_out=executor.left_out,
        alone=by_itself[0] if by_itself else None,
        candidates=candidates,
        contender=contender,
        agreement=agreement,
        out_of_time=out_of_time,
    )
    return job.tuned(
        policy,
        KEY_VALUE[0] if chosen is None else chosen.proposal.kv,
        answer=executed_answer(job, certificate, policy, held, decoded),
        certificate=certificate,
        held=held,
        pool=pool,
        certified_on=executor.certified_on(looked_at),
        provenance={"left_out": executor.left_out, AT_HAND: executor.documents},
        **{EXECUTED_FIELDS[job.floor.kind]: agreement},
        candidates=(*by_itself, *candidates, *(() if contender is None else (contender,))),
    )


def _full_model(job: Job, pool: Pool) -> Proposal:
    """The full model as a candidate: what it loses on the search documents, at its own price."""
    risk = job.full_model(pool).risk
    return Proposal(Never(), KEY_VALUE[0], risk, risk, 1.0, 1.0, free=True)


def _documents(job: Job, executor: Executor, limits: Limits) -> tuple[int, int]:
    """Documents without a loss that the floor needs, and those that a candidate may be decoded on."""
    risk, delta = job.floor.risk, job.delta
    needed = job.rule.needed(risk, delta)
    most = PER_NEEDED * needed if limits.documents is None else limits.documents
    planned = min(executor.documents, most)
    # The betting bound needs one or two more than any test must.
    if job.rule.name == "wsr" and needed <= planned < fewest_documents(risk, delta):
        needed = fewest_documents(risk, delta)
    return needed, planned


def _certificate(
    job: Job, executor: Executor, trials: Sequence[Trial], chosen: Trial | None, needed: int, planned: int
) -> Certificate:
    """What is certified of the chosen candidate, or how far the last one got."""
    last = chosen or (trials[-1] if trials else None)
    return job.certificate(
        None if chosen is None else chosen.losses,
        documents=planned,
        documents_needed=needed,
        tested=len(trials),
        passed=sum(trial.passed for trial in trials),
        assumption=_assumption(job, executor, None if chosen is None else _kv_of(chosen)),
        executed=True,
        kv=None if last is None else _kv_of(last),
        prompt_tokens=executor.prompt_tokens,
        new_tokens=executor.new_tokens,
        stopped_after=None if last is None else last.documents,
    )


def _kv_of(trial: Trial) -> str | None:
    """The strategy of its keys and values; none of the full model's, which skips no layer."""
    return None if isinstance(trial.proposal.policy, Never) else trial.proposal.kv


def _assumption(job: Job, executor: Executor, kv: str | None) -> str:
    """What the certificate takes for granted."""
    name = job.trace.request.get("workload", {}).get("name", "this workload")
    prompt = (
        f"whole prompts drawn like those of {name}"
        if executor.prompt_tokens is None
        else f"the first {executor.prompt_tokens} tokens of documents drawn like those of {name}"
    )
    decoded = "" if kv is None else f", keys and values of skipped layers by {kv}"
    caveat = text_caveat(job.trace)
    return (
        f"decoded greedily and freely from {prompt}, at most {executor.new_tokens} new tokens of each"
        f"{decoded}, one sequence at a time, each document counting once" + (f"; {caveat}" if caveat else "")
    )


def _executed_agreement(
    job: Job, executor: Executor, chosen: Proposal, looked_at: int, clock: Clock
) -> Estimate:
    """Mean executed agreement, of the floor's kind, of documents that chose nothing, and its interval."""
    if clock.over:
        return Estimate(None, undefined="the time was used up")
    losses = np.zeros(0)
    for most in range(DOCUMENTS_AT_ONCE, FRESH + 1, DOCUMENTS_AT_ONCE):
        losses = executor.fresh_losses(chosen.policy, chosen.kv, looked_at, most)
        if clock.over or len(losses) < most:
            break
    if not len(losses):
        return Estimate(None, undefined="no documents are left that chose nothing")
    bootstrap = document_bootstrap(len(losses), draws=DRAWS, seed=job.seed)
    return bootstrap.estimate(bootstrap.means(1.0 - losses, np.ones(len(losses))))


def _candidates(proposals: Sequence[Proposal], trials: Sequence[Trial]) -> tuple[Candidate, ...]:
    """Every candidate of the sequence with what became of it."""
    tested = {id(trial.proposal): trial for trial in trials}
    return tuple(_candidate(one, tested.get(id(one))) for one in proposals)


def _candidate(proposal: Proposal, trial: Trial | None) -> Candidate:
    tested = trial is not None and trial.documents > 0
    return Candidate(
        policy=str(proposal.policy),
        kv=proposal.kv,
        replayed=1.0 - proposal.replayed,
        rerun=1.0 - proposal.risk,
        executed=1.0 - float(trial.losses.mean()) if trial is not None and tested else None,
        documents=0 if trial is None else trial.documents,
        predicted_speed=1.0 / proposal.relative_cost,
        passed=None if trial is None else trial.passed,
        outcome="a candidate before it failed" if trial is None else trial.outcome,
    )


def _lossless(
    job: Job, executor: Executor, costs: StrategyCosts, pool: Pool | None, alone: Sequence[Candidate]
) -> Candidate | None:
    """The policy whose outputs, as drafts that the full model verifies, take the least; by price alone.

    alone: the full model as it was tested, where it may lose something: then it is none unless that passed.
    """
    if job.floor.kind == REFERENCE and not any(one.passed for one in alone):
        return None
    found = []
    for kv in (name for name, strategy in STRATEGIES.items() if strategy.exact):
        front = [one for one in front_of(pool.found if pool else ()) if executor.can(one.policy, kv)]
        for scored in front[:: max(1, len(front) // DRAFTERS)]:
            cost, plain, length = costs.of_drafts(job.trace.subset(job.roles.search), scored.policy, kv)
            found.append((cost / plain, str(scored.policy), kv, length))
    if not found:
        return None
    relative, policy, kv, length = min(found)
    outcome = "lossless: every token is the full model's"
    drafts = Candidate(policy, kv, 1.0, 1.0, None, 0, 1.0 / relative, True, outcome, length)
    for one in alone:
        drafts = replace(drafts, replayed=one.replayed, rerun=one.rerun, executed=one.executed)
    return drafts


def _held(job: Job, executor: Executor, costs: StrategyCosts, chosen: Proposal | None) -> HeldOut:
    """The chosen policy rerun on the report documents, each charged as its strategy runs."""
    if chosen is None or isinstance(chosen.policy, Never) or not len(job.roles.report):
        return job.report(Never())
    again = executor.rerun(chosen.policy, chosen.kv, job.roles.report)
    if not again.trace.token_count:
        return unmeasured("the report documents are one token each", job.pricing.plain)
    charged = costs.of_documents(again.trace, chosen.policy, chosen.kv, again.decisions)
    rows = document_rows(again.trace)
    bootstrap = document_bootstrap(rows.count, draws=DRAWS, seed=job.seed)

    def mean(sums: NDArray[np.float64]) -> Estimate:
        return bootstrap.estimate(bootstrap.means(sums, rows.tokens))

    def kept(losses: Losses) -> Estimate:
        over = document_bootstrap(len(losses), draws=DRAWS, seed=job.seed)
        return over.estimate(over.means(1.0 - losses, np.ones(len(losses))))

    reference = again.reference_losses
    cost, plain = bootstrap.totals(charged.cost), bootstrap.totals(charged.plain)
    probes = float(charged.cost.sum() - charged.without_probes.sum())
    nobody = np.zeros(0, dtype=np.int64)
    return HeldOut(
        quality=kept(again.losses_at(job.floor.kind)),
        agreement=kept(again.losses),
        skip_ratio=mean(rows.tokens - charged.layers / job.trace.layers),
        net_speedup=bootstrap.estimate(plain / cost),
        cost=mean(charged.cost),
        plain_cost=job.pricing.plain,
        probe_share=max(0.0, probes / float(charged.cost.sum())),
        probe_cost=max(0.0, probes / float(rows.tokens.sum())),
        counts=DecisionCounts(nobody, {}, nobody, nobody),
        reference_agreement=None if reference is None else kept(reference),
        gain=costs.gain(again.trace, chosen.policy, chosen.kv, again.decisions),
    )
