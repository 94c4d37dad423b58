"""A policy's figures on documents that its choice never saw, one at a time or in lockstep, with intervals."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from offramp.costs.machine import Machine
from offramp.policies.charge import Charge, Units, prices_for
from offramp.policies.cost_breakdown import PriceAt, Usage, lines_of
from offramp.policies.decisions import Decisions, replay_decisions, task_of
from offramp.policies.figures import PolicyFigures, PositiveOf
from offramp.policies.policy import ExitPolicy
from offramp.policies.prices import layers_executed
from offramp.policies.rules.short_list import seen_by
from offramp.scoring.documents import document_rows
from offramp.scoring.estimate import DocumentBootstrap, Estimate, document_bootstrap
from offramp.tracing.trace import Trace
from offramp.tuning.floor import Floor, document_losses, risk_to_quality, token_losses
from offramp.tuning.pricing import Pricing

TUNED_DRAWS = 2000


@dataclass(frozen=True, kw_only=True)
class HeldOut(PolicyFigures):
    """A policy on documents that its choice never saw, each figure with its interval over them."""

    quality: Estimate
    """In the unit of the floor that it was chosen for, mean over documents."""
    seconds_per_token: PositiveOf[Estimate]
    """On the machine that it is priced for; bytes moved where there is none."""
    plain_seconds_per_token: PositiveOf[float]
    """The same of the full model."""


@lru_cache(maxsize=4)
def _drawn(documents: int, seed: int) -> DocumentBootstrap:
    """The same draws for every policy that is measured on so many documents."""
    return document_bootstrap(documents, draws=TUNED_DRAWS, seed=seed)


def measure(
    trace: Trace, policy: ExitPolicy, pricing: Pricing, floor: Floor, seed: int, kv: str = "propagate"
) -> HeldOut:
    """A policy on the documents of a trace; intervals need 20 of them. kv: that the pricing is of.

    Raises PolicyError if the policy does not fit the trace, InputError for a trace without tokens.
    """
    return measure_parts(trace, policy, pricing, floor, seed, kv)[0]


def measure_parts(
    trace: Trace, policy: ExitPolicy, pricing: Pricing, floor: Floor, seed: int, kv: str = "propagate"
) -> tuple[HeldOut, float, dict[str, float]]:
    """The same, with what probes take of a token's cost, and its cost by part at batch 1 (see `PARTS`)."""
    own = policy.for_task(task_of(trace))
    trace, own_pricing = seen_by(own, trace), pricing.paid_by(own)
    rows = document_rows(trace)
    decisions = replay_decisions(policy, trace)
    exits, parts = decisions.exits, own_pricing.parts(decisions)
    bootstrap = _drawn(rows.count, seed)
    weights = bootstrap.weights
    taken = np.arange(trace.token_count), np.searchsorted(trace.exits, exits)
    reference = trace.reference_agreement
    risk = (weights @ document_losses(trace, token_losses(trace, floor), exits)) / weights.sum(axis=1)
    cost = own_pricing.of_documents(decisions, rows, weights)
    # The full model's cost takes the same way through the sums, so that its own speedup is exactly 1.
    never = Decisions(np.full_like(exits, trace.layers), {})
    plain = own_pricing.of_full_model.of_documents(never, rows, weights)
    charged = float(cost[0])
    probes = charged - own_pricing.without_probes(decisions)

    def mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> Estimate:
        return bootstrap.estimate(bootstrap.means(rows.sums(values), rows.tokens))

    held = HeldOut(
        policy=policy,
        kv=kv,
        reachable=own.reachable,
        quality=bootstrap.estimate(np.asarray([risk_to_quality(floor, loss) for loss in risk])),
        agreement=mean(trace.agreement[taken]),
        skip_ratio=mean(1.0 - layers_executed(trace.shape)[exits - 1] / trace.layers),
        net_speedup=bootstrap.estimate(plain / cost),
        seconds_per_token=bootstrap.estimate(cost),
        plain_seconds_per_token=pricing.plain,
        probe_share=max(0.0, probes / charged),
        reference_agreement=None if reference is None else mean(reference[taken]),
        gain=own_pricing.gain(parts),
    )
    return held, max(0.0, probes), parts


def speed_over(trace: Trace, policy: ExitPolicy, other: ExitPolicy, pricing: Pricing, seed: int) -> Estimate:
    """One policy's speed over another's on the same documents, paired; the interval needs 20 of them."""
    rows = document_rows(trace)
    bootstrap = _drawn(rows.count, seed)

    def cost(one: ExitPolicy) -> NDArray[np.float64]:
        own = one.for_task(task_of(trace))
        decisions = replay_decisions(own, seen_by(own, trace))
        return pricing.paid_by(own).of_documents(decisions, rows, bootstrap.weights)

    return bootstrap.estimate(cost(other) / cost(policy))


def unmeasured(
    policy: ExitPolicy,
    why: str,
    plain_cost: float,
    *,
    kv: str = "propagate",
    transformed: bool = False,
) -> HeldOut:
    """The figures where there are no documents to measure on. transformed: whether there is a reference."""
    nothing = Estimate(None, undefined=why)
    return HeldOut(
        policy=policy,
        kv=kv,
        quality=nothing,
        agreement=nothing,
        skip_ratio=nothing,
        net_speedup=nothing,
        seconds_per_token=nothing,
        plain_seconds_per_token=plain_cost,
        probe_share=0.0,
        reachable=policy.reachable,
        reference_agreement=nothing if transformed else None,
    )


def group_losses(units: Units, floor: Floor) -> NDArray[np.float64]:
    """Mean loss of each group's documents, of whole groups only: float64 [whole groups], in [0, 1]."""
    means = _loss_sums(units, floor) / units.sizes
    return np.asarray(means[units.sizes == units.run.batch])


def measure_in_lockstep(
    units: Units, policy: ExitPolicy, machine: Machine, floor: Floor, seed: int, kv: str = "propagate"
) -> HeldOut:
    """A policy's figures on the groups of a batch, its steps priced by their rows; intervals need 20 groups.

    policy: as it was given, maybe one for each of several workloads. Raises InputError for what the machine
    cannot price.
    """
    run, charge = units.run, Charge.of(units.run, kv)
    trace, exits = run.trace, run.decisions.exits
    bootstrap = units.bootstrap(TUNED_DRAWS, seed)
    tokens = units.sums(np.ones(len(exits)))
    taken = np.arange(trace.token_count), np.searchsorted(trace.exits, exits)
    reference = trace.reference_agreement
    risk = bootstrap.means(_loss_sums(units, floor), units.sizes.astype(np.float64))
    at = prices_for(trace, machine, kv)
    groups = [Charge.of(units.at(unit), kv) for unit in range(len(units.sizes))]
    sums = [[_total(usage, at) for usage in (group.usage, group.unchecked, group.plain)] for group in groups]
    charged, unprobed, plain = np.array(sums).T
    cost, full = bootstrap.means(charged, tokens), bootstrap.means(plain, tokens)

    def mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> Estimate:
        return bootstrap.estimate(bootstrap.means(units.sums(values), tokens))

    return HeldOut(
        policy=policy,
        kv=kv,
        reachable=run.policy.reachable,
        quality=bootstrap.estimate(np.asarray([risk_to_quality(floor, loss) for loss in risk])),
        agreement=mean(trace.agreement[taken]),
        skip_ratio=mean(1.0 - layers_executed(trace.shape)[exits - 1] / trace.layers),
        net_speedup=bootstrap.estimate(full / cost),
        seconds_per_token=bootstrap.estimate(cost),
        plain_seconds_per_token=float(full[0]),
        probe_share=max(0.0, float((charged - unprobed).sum()) / float(charged.sum())),
        reference_agreement=None if reference is None else mean(reference[taken]),
        gain=charge.breakdown(at).gain,
    )


def _loss_sums(units: Units, floor: Floor) -> NDArray[np.float64]:
    trace = units.run.trace
    losses = document_losses(trace, token_losses(trace, floor), units.run.decisions.exits)
    return np.bincount(units.of_document, weights=losses).astype(np.float64)


def _total(usage: Usage, at: PriceAt) -> float:
    return sum(line.total for line in lines_of(usage, at))
