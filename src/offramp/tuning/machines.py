"""Machines side by side: the best policy on each, at each batch size, judged on unseen documents."""

from __future__ import annotations

from collections.abc import Iterable

from offramp.costs.machine import Machine
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.fixed import Never
from offramp.scoring.estimate import Estimate
from offramp.tracing.trace import Trace
from offramp.tuning.held_out import measure
from offramp.tuning.league import Halves, halves_of
from offramp.tuning.losses import make_floor
from offramp.tuning.pool import Pool
from offramp.tuning.pricing import pricing_of
from offramp.tuning.results import Decision, Floor, MachineAnswer
from offramp.tuning.searching import search_pool
from offramp.tuning.verdict import WORTH


def machine_answers(
    trace: Trace,
    machines: Iterable[Machine],
    batches: Iterable[int] = (1, 8, 32),
    floor: float = 0.99,
    seed: int = 0,
    *,
    worth: float = WORTH,
    thorough: bool = False,
) -> tuple[MachineAnswer, ...]:
    """For every machine and batch size the policy that is fastest there at a floor on agreement.

    The policy is chosen on one half of the documents and judged on the other, as a verdict is. Batches run in
    lockstep (see `offramp.tuning.pricing.Pricing`). thorough: as in `offramp.tuning.searching.search_pool`.

    Raises InputError for a floor outside (0, 1), a batch below 1, a machine that cannot price the model, or a
    trace that cannot be halved or lacks exits below L.
    """
    checked = make_floor({"agreement": floor})
    halves = halves_of(trace, seed)
    sizes = tuple(batches)
    return tuple(
        _answer(trace, halves, machine, batch, checked, seed, worth, thorough)
        for machine in machines
        for batch in sizes
    )


def _answer(
    trace: Trace,
    halves: Halves,
    machine: Machine,
    batch: int,
    floor: Floor,
    seed: int,
    worth: float,
    thorough: bool,
) -> MachineAnswer:
    pricing = pricing_of(trace, machine, batch)
    pool = Pool(halves.choosing, floor, pricing)
    search_pool(pool, floor.risk, thorough=thorough)
    best = pool.fastest(floor.risk)
    policy: ExitPolicy = Never() if best is None or best.cost >= pricing.plain else best.policy
    held = measure(halves.judging, policy, pricing, floor, seed)
    return MachineAnswer(
        machine=pricing.machine,
        source=pricing.source,
        batch=batch,
        floor=floor.value,
        policy=str(policy),
        decision=decide(policy, held.net_speedup, held.agreement, floor, worth),
        net_speedup=held.net_speedup,
        agreement=held.agreement,
        plain_seconds_per_token=pricing.plain,
    )


def decide(
    policy: ExitPolicy, speedup: Estimate, agreement: Estimate, floor: Floor, worth: float
) -> Decision:
    """The verdict on a policy that was judged on unseen documents (see `offramp.tuning.verdict.judge`)."""
    if isinstance(policy, Never):
        return "does not pay"
    if speedup.low is None or speedup.high is None or agreement.high is None:
        return "too close to call"
    if speedup.high < 1.0 + worth:
        return "does not pay"
    return "pays" if speedup.low > 1.0 + worth and agreement.high >= floor.value else "too close to call"
