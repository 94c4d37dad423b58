"""Tuning: the fastest policy that keeps a quality floor, with a certificate, or an honest no."""

from __future__ import annotations

from collections.abc import Mapping

from offramp.costs.machine import Machine
from offramp.errors import InputError
from offramp.policies.kv_cost import exits_without, find_strategy, maps_charged
from offramp.policies.policy_cost import machine_for
from offramp.tracing.trace import Trace
from offramp.tuning.bounds import Method, find_method
from offramp.tuning.certify import require_delta
from offramp.tuning.executed import Limits, tune_by_execution
from offramp.tuning.executor import Executor
from offramp.tuning.floor import Floor
from offramp.tuning.job import Job
from offramp.tuning.losses import make_floor
from offramp.tuning.pool import require_policies
from offramp.tuning.pricing import KEY_VALUE, pricing_of
from offramp.tuning.replay_bound import tune_by_replay
from offramp.tuning.splits import require_seed, split_roles
from offramp.tuning.tuned import Tuned

AUTO = "auto"
"""The K,V strategy is chosen like the policy; without a model it is "propagate"."""

EXECUTED = "agreement"
"""The kind of floor that is executed."""


def tune(
    trace: Trace,
    floor: Mapping[str, float] | Floor,
    hardware: str | Machine | None = "local",
    *,
    method: str = "wsr",
    delta: float = 0.1,
    batch: int = 1,
    kv: str = "propagate",
    clip: float | None = None,
    seed: int = 0,
    executor: Executor | None = None,
    limits: Limits | None = None,
) -> Tuned:
    """Search, test and measure a policy on disjoint documents of one trace.

    Without an executor the losses are replayed and the answer is a replay bound; with one, which is a model
    at hand, they are of texts that it really decodes. `offramp.tune` has the same and makes one.

    floor: {"agreement": 0.99}, {"nll": nats} or {"kl": nats}; of a transformed model also
    {"reference_agreement": 0.95}, agreement with the untransformed one. clip: nats at which a token's loss is
    cut. Only a floor on agreement is executed.
    hardware: a machine or its name ("local": this machine's profile of the trace's model); None counts bytes
    moved. method: "wsr", "hb", "crc" or "naive". delta: chance that the statement is wrong.
    limits: of what is decoded.

    The policy is "never", and the answer says why, if nothing beats the full model, nothing passes, or the
    documents are too few to show anything.

    Raises InputError for a floor, method, delta, batch or seed out of range, an unknown machine, a trace that
    lacks what the floor needs or that has no exits below L; PolicyError for mapping without maps.
    """
    floor, rule = check_settings(floor, method, delta, clip, seed)
    require_policies(trace)
    machine = None if hardware is None else machine_for(trace, hardware)
    executed = executor is not None and floor.kind == EXECUTED
    if executed:
        require_single(batch)
    if executed or kv == AUTO:
        # The search is priced so; every candidate is then charged as its own strategy runs.
        kv = KEY_VALUE[0]
    elif find_strategy(kv).name not in KEY_VALUE:
        raise InputError(
            f"tuning does not search with the K,V strategy {kv!r} without a model",
            where="--kv",
            fix="choose one of: " + ", ".join(KEY_VALUE),
        )
    pricing = pricing_of(trace, machine, batch, kv)
    job = Job(trace, floor, pricing, machine, rule, delta, seed, split_roles(trace, seed))
    if executed:
        assert executor is not None
        return tune_by_execution(job, executor, limits or Limits())
    _require_mapped_exits(trace, kv)
    return tune_by_replay(job, kv)


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
            where='--kv "mapped"',
            fix=f"trace these only (offramp trace ... --exits {listed}), or fit maps of all traced exits",
        )


def check_settings(
    floor: Mapping[str, float] | Floor, method: str, delta: float, clip: float | None, seed: int
) -> tuple[Floor, Method]:
    """The floor and the method that are meant. Raises InputError for what is out of range."""
    wanted, rule = make_floor(floor, clip), find_method(method)
    require_delta(delta)
    require_seed(seed)
    return wanted, rule


def require_single(batch: int) -> None:
    """Raise InputError for a batch that waits for its deepest row, which is not what is executed."""
    if batch != 1:
        raise InputError(
            f"what is decoded is one sequence at a time, not a batch of {batch}",
            where="--batch",
            fix="leave --batch out, or give --model none: a replay bound",
        )
