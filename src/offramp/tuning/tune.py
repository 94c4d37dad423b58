"""Tuning: the fastest policy that keeps a floor, with a certificate, a *replay bound*, or an honest no."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from offramp.costs.machine import Machine
from offramp.defaults import DELTA, LOCAL, METHOD, SEED
from offramp.errors import InputError
from offramp.kit.arguments import checked
from offramp.kit.numbers import Count, Share, Whole
from offramp.policies.binding import text_caveat
from offramp.policies.decisions import task_of
from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.kv import PROPAGATE, STRATEGIES, exits_without, maps_charged
from offramp.policies.names import StrategyName
from offramp.policies.prices import machine_for
from offramp.scoring.documents import lengths_of, lengths_text
from offramp.tracing.trace import Trace
from offramp.tuning.bounds import METHODS
from offramp.tuning.certificate import (
    Certificate,
    losses_in_order,
    ordered_candidates,
    run_sequence,
)
from offramp.tuning.executed import DecodingLimits, tune_by_execution
from offramp.tuning.fixed_sequence import Executor
from offramp.tuning.floor import Floor, make_floor
from offramp.tuning.job import TuningJob
from offramp.tuning.names import MethodName, Search
from offramp.tuning.pool import ScoredPolicy, require_policies
from offramp.tuning.pricing import pricing_of
from offramp.tuning.splits import split_roles
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict_words import replayed_answer


def tune_by_replay(job: TuningJob, kv: str) -> Tuned:
    """Search, test on the certify documents as they are replayed, and measure on the report documents."""
    pool = None if job.refusal(None) else job.search()
    candidates = ordered_candidates(pool, job.floor.risk) if pool else []
    chosen, certificate = _test(job, candidates)
    held = job.report(PLAIN_DECODING if chosen is None else chosen.policy, kv)
    answer = replayed_answer(job, len(candidates), certificate, held)
    return job.tuned(held, answer=answer, certificate=certificate, pool=pool)


def _test(job: TuningJob, candidates: list[ScoredPolicy]) -> tuple[ScoredPolicy | None, Certificate]:
    """The fastest candidate that passes its test on the certify documents, if those could show anything."""
    documents = job.roles.certify
    enough = len(documents) >= job.rule.needed(job.floor.risk, job.delta)
    policies = [candidate.policy for candidate in candidates] if enough else []
    losses = losses_in_order(job.trace, documents, policies, job.floor)
    costs = [candidate.cost for candidate in candidates]
    tested = run_sequence(losses, costs, job.floor.risk, job.delta, job.rule)
    chosen = None if tested.chosen is None else candidates[tested.chosen]
    return chosen, job.certificate(
        None if tested.chosen is None else losses[:, tested.chosen],
        documents=len(losses),
        tested=tested.tested,
        passed=tested.passed,
        assumption=assumption_of_replay(job),
        document_tokens=lengths_of(job.trace, documents),
    )


def assumption_of_replay(job: TuningJob) -> str:
    """What a replay bound takes for granted."""
    trace = job.trace
    name = task_of(trace) or "this workload"
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


AUTO = "auto"
"""The K,V strategy is chosen like the policy; without a model it is "propagate"."""

FAMILIES: Search = "families"
EVOLUTION: Search = "evolution"


@checked
def tune(
    trace: Trace,
    floor: Mapping[str, float] | Floor,
    hardware: str | Machine | None = LOCAL,
    *,
    method: MethodName = METHOD,
    delta: Share = DELTA,
    batch: Count = 1,
    kv: Literal["auto"] | StrategyName = "propagate",
    clip: float | None = None,
    seed: Whole = SEED,
    search: Search = FAMILIES,
    executor: Executor | None = None,
    limits: DecodingLimits | None = None,
) -> Tuned:
    """Search, test and measure a policy on disjoint documents of one trace.

    Without an executor the losses are replayed and the answer is a replay bound; with one, which is a model
    at hand, they are of texts that it really decodes. `offramp.tune` has the same and makes one.

    floor: {"agreement": 0.99}, {"nll": nats} or {"kl": nats}; of a transformed model also
    {"reference_agreement": 0.95}, agreement with the untransformed one, or with the reference that was
    traced. clip: nats at which a token's loss is cut. Only the kind of floor that the executor judges is
    executed.
    hardware: a machine or its name ("local": this machine's profile of the trace's model); None counts bytes
    moved. method: "wsr", "hb", "crc" or "naive". delta: chance that the statement is wrong.
    limits: of what is decoded. search: "families" of rules, or "evolution", which looks for a signal and a
    threshold of each exit besides (see `offramp.tuning.evolution`).

    The policy is "never", and the answer says why, if nothing beats the full model, nothing passes, or the
    documents are too few to show anything.

    Raises InputError for a floor, method, delta, batch or seed out of range, an unknown machine, a trace that
    lacks what the floor needs or that has no exits below L; PolicyError for mapping without maps.
    """
    wanted, rule = make_floor(floor, clip), METHODS[method]
    require_policies(trace)
    machine = None if hardware is None else machine_for(trace, hardware)
    if executor is not None and wanted.kind == executor.kind:
        settings: dict[str, Any] = {"method": method, "delta": delta, "seed": seed, "search": search}
        require_single(batch)
        return tune_floors(trace, [wanted], machine, executor, limits or DecodingLimits(), **settings)[0]
    if kv == AUTO:
        # The search is priced so; every candidate is then charged as its own strategy runs.
        kv = PROPAGATE.name
    elif not STRATEGIES[kv].searched:
        raise InputError(
            f"tuning does not search with the K,V strategy {kv!r} without a model",
            where="kv= (--kv)",
            fix="choose one of: " + ", ".join(name for name, one in STRATEGIES.items() if one.searched),
        )
    pricing = pricing_of(trace, machine, batch, kv)
    roles = split_roles(trace, seed)
    job = TuningJob(trace, wanted, pricing, machine, rule, delta, seed, roles, evolves=search == EVOLUTION)
    _require_mapped_exits(trace, kv)
    return tune_by_replay(job, kv)


def tune_floors(
    trace: Trace,
    floors: Sequence[Mapping[str, float] | Floor],
    hardware: str | Machine | None,
    executor: Executor,
    limits: DecodingLimits,
    *,
    method: str = METHOD,
    delta: float = DELTA,
    seed: int = SEED,
    search: Search = FAMILIES,
) -> list[Tuned]:
    """What `tune` gives at several floors of the kind that a model judges, the main one first: together.

    Raises what `tune` raises.
    """
    require_policies(trace)
    machine = machine_for(trace, hardware) if isinstance(hardware, str) else hardware
    # The search is priced so; every candidate is then charged as its own strategy runs.
    pricing, roles = pricing_of(trace, machine), split_roles(trace, seed)
    jobs = []
    for floor in floors:
        wanted, rule = make_floor(floor), METHODS[method]
        jobs.append(
            TuningJob(trace, wanted, pricing, machine, rule, delta, seed, roles, evolves=search == EVOLUTION)
        )
    return tune_by_execution(jobs, executor, limits)


def _require_mapped_exits(trace: Trace, kv: str) -> None:
    """Refuse a trace with exits that have no K,V maps: what is searched could not be decoded there.

    Raises InputError.
    """
    maps = maps_charged(trace, kv)
    missing = exits_without(maps, trace.exits.tolist(), trace.layers) if maps else []
    if missing:
        listed = ",".join(str(exit) for exit, _ in maps)
        raise InputError(
            f"exit {missing[0]} of the trace has no K,V maps, which start at {listed}",
            where='kv="mapped" (--kv mapped)',
            fix=f"trace these only (offramp trace ... --exits {listed}), or fit maps of all traced exits",
        )


def require_single(batch: int) -> None:
    """Raise InputError for a batch that waits for its deepest row, which is not what is executed."""
    if batch != 1:
        raise InputError(
            f"what is decoded is one sequence at a time, not a batch of {batch}",
            where="batch= (--batch)",
            fix="leave batch= (--batch) out, or give no model (--model none): a replay bound",
        )
