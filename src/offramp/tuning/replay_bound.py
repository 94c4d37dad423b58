"""The tuner without a model: candidates tested on what the trace's replay says, a *replay bound*."""

from __future__ import annotations

from offramp.policies.binding import text_caveat
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.fixed import Never
from offramp.scoring.documents import lengths_of, lengths_text
from offramp.tuning.answers import replayed_answer
from offramp.tuning.certify import (
    Tested,
    losses_in_order,
    make_certificate,
    ordered_candidates,
    run_sequence,
)
from offramp.tuning.held_out import HeldOut, measure, unmeasured
from offramp.tuning.job import Job
from offramp.tuning.lockstep import measure_in_lockstep, walk_in_lockstep
from offramp.tuning.pool import Scored
from offramp.tuning.tuned import Certificate, Tuned


def tune_by_replay(job: Job, kv: str) -> Tuned:
    """Search, test on the certify documents as they are replayed, and measure on the report documents."""
    pool = job.search()
    candidates = ordered_candidates(pool, job.floor.risk) if pool else []
    tested, certificate = _test(job, candidates)
    chosen = None if tested.chosen is None else candidates[tested.chosen]
    policy: ExitPolicy = Never() if chosen is None else chosen.policy
    held = measure_report(job, policy, kv)
    answer = replayed_answer(job, len(candidates), certificate, policy, held)
    return job.tuned(policy, kv, answer=answer, certificate=certificate, held=held, pool=pool)


def _test(job: Job, candidates: list[Scored]) -> tuple[Tested, Certificate]:
    """Test the candidates on the certify documents, if those could show anything at all."""
    documents = job.roles.certify
    enough = len(documents) >= job.rule.needed(job.floor.risk, job.delta)
    policies = [candidate.policy for candidate in candidates] if enough else []
    losses = losses_in_order(job.trace, documents, policies, job.floor)
    costs = [candidate.cost for candidate in candidates]
    tested = run_sequence(losses, costs, job.floor.risk, job.delta, job.rule)
    return tested, make_certificate(
        job.floor,
        job.rule.name,
        job.delta,
        losses,
        tested,
        assumption_of_replay(job),
        lengths_of(job.trace, documents),
    )


def measure_report(job: Job, policy: ExitPolicy, kv: str = "propagate") -> HeldOut:
    """The policy replayed on documents that nothing was chosen on, in lockstep if batched."""
    count, batch = len(job.roles.report), job.pricing.batch
    transformed = job.trace.reference_top1 is not None
    if not count:
        why = "no documents are left to report on"
        return unmeasured(why, job.pricing.plain, transformed=transformed)
    held = job.trace.subset(job.roles.report)
    if batch == 1 or job.machine is None:
        return measure(held, policy, job.pricing, job.floor, job.seed)
    if count < batch:
        why = f"{count} report documents do not fill a batch of {batch}"
        return unmeasured(why, job.pricing.plain, transformed=transformed)
    lockstep = walk_in_lockstep(held, policy, batch, job.seed)
    return measure_in_lockstep(held, lockstep, job.machine, job.floor, job.seed, kv)


def assumption_of_replay(job: Job) -> str:
    """What a replay bound takes for granted."""
    trace = job.trace
    name = trace.request.get("workload", {}).get("name", "this workload")
    generated = bool(trace.generated.any())
    forced = "teacher-forced on the full model's own answers" if generated else "teacher-forced"
    tokens = lengths_text(lengths_of(trace))
    said = f"{forced}, later tokens reading the full model's own keys and values, on documents{tokens} drawn "
    said += f"like those of {name}, each counting once"
    if caveat := text_caveat(trace):
        said += f"; {caveat}"
    if job.floor.clip is not None:
        said += f"; a token's loss is cut to 0 to {job.floor.clip:g} nats"
    if job.pricing.batch > 1:
        said += "; quality is that of the exits the policy itself asks for, not of a batch that waits"
    return said
