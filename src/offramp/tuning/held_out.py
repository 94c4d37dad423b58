"""A policy's figures on documents that its choice never saw, one at a time or in lockstep, with intervals."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from offramp.costs.machine import Machine
from offramp.policies.cost_breakdown import PriceAt, Usage, gain_of_usage, lines_of
from offramp.policies.decisions import Decisions, replay_decisions, task_of
from offramp.policies.figures import PolicyFigures
from offramp.policies.kv import maps_charged
from offramp.policies.policy import ExitPolicy
from offramp.policies.policy_cost import layers_executed, seconds_at
from offramp.policies.rules.short_list import seen_by
from offramp.policies.steps import Steps, count_plain, count_steps, group_into_steps, in_lockstep
from offramp.scoring.documents import document_rows
from offramp.scoring.estimate import DOCUMENTS_NEEDED, DocumentBootstrap, Estimate, document_bootstrap
from offramp.tracing.trace import Trace
from offramp.tuning.floor import Floor, document_losses, risk_to_quality, token_losses
from offramp.tuning.pricing import DecisionCounts, Pricing, count_decisions

DRAWS = 2000


@dataclass(frozen=True, kw_only=True)
class HeldOut(PolicyFigures):
    """A policy on documents that its choice never saw, each figure with its interval over them."""

    quality: Estimate
    """In the unit of the floor that it was chosen for, mean over documents."""
    seconds_per_token: Estimate
    """On the machine that it is priced for; bytes moved where there is none."""
    plain_seconds_per_token: float
    """The same of the full model."""


@dataclass(frozen=True, kw_only=True)
class Measured(HeldOut):
    """The same with what it was counted from."""

    probe_cost: float = 0.0
    """Of the seconds of a token, those of its probes."""
    counts: DecisionCounts | None = None
    """What is charged; None where there are no documents, or where it was charged as a strategy runs."""


@lru_cache(maxsize=4)
def _drawn(documents: int, seed: int) -> DocumentBootstrap:
    """The same draws for every policy that is measured on so many documents."""
    return document_bootstrap(documents, draws=DRAWS, seed=seed)


def measure(
    trace: Trace,
    policy: ExitPolicy,
    pricing: Pricing,
    floor: Floor,
    seed: int,
    kv: str = "propagate",
) -> Measured:
    """A policy on the documents of a trace; intervals need 20 of them. kv: that the pricing is of.

    Raises PolicyError if the policy does not fit the trace, InputError for a trace without tokens.
    """
    own = policy.for_task(task_of(trace))
    trace, pricing = seen_by(own, trace), pricing.paid_by(own)
    rows = document_rows(trace)
    decisions = replay_decisions(policy, trace)
    exits, counts = decisions.exits, count_decisions(decisions, trace.layers)
    bootstrap = _drawn(rows.count, seed)
    weights = bootstrap.weights
    taken = np.arange(trace.token_count), np.searchsorted(trace.exits, exits)
    reference = trace.reference_agreement
    risk = (weights @ document_losses(trace, token_losses(trace, floor), exits)) / weights.sum(axis=1)
    cost = pricing.of_documents(decisions, rows, weights)
    # The full model's cost takes the same way through the sums, so that its own speedup is exactly 1.
    never = Decisions(np.full_like(exits, trace.layers), {})
    plain = pricing.of_full_model.of_documents(never, rows, weights)
    charged = float(cost[0])
    probes = charged - pricing.without_probes(decisions)

    def mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> NDArray[np.float64]:
        return bootstrap.means(rows.sums(values), rows.tokens)

    return Measured(
        policy=policy,
        kv=kv,
        reachable=own.reachable,
        quality=bootstrap.estimate(np.asarray([risk_to_quality(floor, one) for one in risk])),
        agreement=bootstrap.estimate(mean(trace.agreement[taken])),
        skip_ratio=bootstrap.estimate(mean(1.0 - layers_executed(trace.shape)[exits - 1] / trace.layers)),
        net_speedup=bootstrap.estimate(plain / cost),
        seconds_per_token=bootstrap.estimate(cost),
        plain_seconds_per_token=pricing.plain,
        probe_share=max(0.0, probes / charged),
        probe_cost=max(0.0, probes),
        counts=counts,
        reference_agreement=None if reference is None else bootstrap.estimate(mean(reference[taken])),
        gain=pricing.gain(counts),
    )


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
) -> Measured:
    """The figures where there are no documents to measure on. transformed: whether there is a reference."""
    nothing = Estimate(None, undefined=why)
    return Measured(
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


@dataclass(frozen=True)
class Lockstep:
    """A trace's documents decided in lockstep, `batch` at a time, as `offramp.policies.replay` groups them.

    given: the policy, maybe one for each of several workloads. policy: as it decides on this one. decisions:
    the exits taken, at each step the deepest that one of its tokens asks for. steps: int64 [tokens].
    group_of_row: int64 [tokens]; group_of_document: int64 [documents], canonical order. Documents of one
    group depend on each other through their exits, so that groups, not documents, are the unit of intervals.
    """

    given: ExitPolicy
    policy: ExitPolicy
    batch: int
    decisions: Decisions
    steps: Steps
    group_of_row: NDArray[np.int64]
    group_of_document: NDArray[np.int64]

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Documents of each group, fewer than the batch in a last one: int64 [groups]."""
        return np.bincount(self.group_of_document)

    def sums(self, values: NDArray[np.float64] | NDArray[np.bool_]) -> NDArray[np.float64]:
        """Sums over each group's tokens: [tokens] -> float64 [groups]."""
        return np.bincount(self.group_of_row, weights=values).astype(np.float64)

    def of_group(self, group: int) -> tuple[Decisions, Steps]:
        """The decisions on one group's tokens, and its steps counted from 0."""
        rows = self.group_of_row == group
        steps = np.unique(self.steps[rows], return_inverse=True)[1].astype(np.int64)
        return self.decisions.at_rows(rows), steps


def replay_in_lockstep(trace: Trace, policy: ExitPolicy, batch: int, seed: int) -> Lockstep:
    """Replay a policy on a trace's documents, in groups drawn by `seed`.

    Raises PolicyError if the policy does not fit the trace, or for fewer documents than the batch has rows.
    """
    rows = document_rows(trace)
    steps = group_into_steps(trace.document, batch, seed)
    # The first tokens of a group's documents are one step, which no other group has.
    groups = np.unique(steps[rows.starts], return_inverse=True)[1].astype(np.int64)
    return Lockstep(
        given=policy,
        policy=policy.for_task(task_of(trace)),
        batch=batch,
        decisions=in_lockstep(replay_decisions(policy, trace), steps),
        steps=steps,
        group_of_row=np.repeat(groups, rows.lengths),
        group_of_document=groups[rows.order],
    )


def group_losses(trace: Trace, lockstep: Lockstep, floor: Floor) -> NDArray[np.float64]:
    """Mean loss of each group's documents, of whole groups only: float64 [whole groups], in [0, 1]."""
    means = _loss_sums(trace, lockstep, floor) / lockstep.sizes
    return np.asarray(means[lockstep.sizes == lockstep.batch])


def measure_in_lockstep(
    trace: Trace, lockstep: Lockstep, machine: Machine, floor: Floor, seed: int, kv: str = "propagate"
) -> Measured:
    """A replayed policy's figures, its steps priced by their rows; intervals need 20 groups.

    kv: "propagate" or "mapped". Raises InputError for what the machine cannot price.
    """
    exits, trace = lockstep.decisions.exits, seen_by(lockstep.policy, trace)
    bootstrap = document_bootstrap(len(lockstep.sizes), draws=DRAWS, seed=seed)
    if bootstrap.no_interval is not None:
        bootstrap = replace(bootstrap, no_interval=_no_interval(lockstep))
    tokens = lockstep.sums(np.ones(len(exits)))
    taken = np.arange(trace.token_count), np.searchsorted(trace.exits, exits)
    reference = trace.reference_agreement
    risk = bootstrap.means(_loss_sums(trace, lockstep, floor), lockstep.sizes.astype(np.float64))
    skipped = 1.0 - layers_executed(trace.shape)[exits - 1] / trace.layers
    maps = maps_charged(trace, kv)
    at = seconds_at(trace, machine, maps=maps)
    charged, unprobed, plain = _charges(trace, lockstep, at, mapped=bool(maps))
    cost, full = bootstrap.means(charged, tokens), bootstrap.means(plain, tokens)
    probes = float((charged - unprobed).sum())

    def mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> NDArray[np.float64]:
        return bootstrap.means(lockstep.sums(values), tokens)

    return Measured(
        policy=lockstep.given,
        kv=kv,
        reachable=lockstep.policy.reachable,
        quality=bootstrap.estimate(np.asarray([risk_to_quality(floor, one) for one in risk])),
        agreement=bootstrap.estimate(mean(trace.agreement[taken])),
        skip_ratio=bootstrap.estimate(mean(skipped)),
        net_speedup=bootstrap.estimate(full / cost),
        seconds_per_token=bootstrap.estimate(cost),
        plain_seconds_per_token=float(full[0]),
        probe_share=max(0.0, probes / float(charged.sum())),
        probe_cost=max(0.0, probes / len(exits)),
        counts=count_decisions(lockstep.decisions, trace.layers),
        reference_agreement=None if reference is None else bootstrap.estimate(mean(reference[taken])),
        gain=gain_of_usage(
            count_steps(lockstep.decisions, lockstep.steps, trace.layers, repair=True),
            count_plain(lockstep.steps, trace.layers),
            at,
            len(exits),
        ),
    )


def _loss_sums(trace: Trace, lockstep: Lockstep, floor: Floor) -> NDArray[np.float64]:
    seen = seen_by(lockstep.policy, trace)
    losses = document_losses(seen, token_losses(seen, floor), lockstep.decisions.exits)
    return np.bincount(lockstep.group_of_document, weights=losses).astype(np.float64)


def _charges(trace: Trace, lockstep: Lockstep, at: PriceAt, *, mapped: bool) -> NDArray[np.float64]:
    """What each group costs, what it would without a check, and with the full model: float64 [3, groups]."""

    def total(usage: Usage) -> float:
        return sum(line.total for line in lines_of(usage, at))

    charges = []
    for group in range(len(lockstep.sizes)):
        decisions, steps = lockstep.of_group(group)
        charges.append(
            (
                total(count_steps(decisions, steps, trace.layers, repair=True, maps=mapped)),
                total(count_steps(decisions.unchecked(), steps, trace.layers, repair=True, maps=mapped)),
                total(count_plain(steps, trace.layers)),
            )
        )
    return np.array(charges).T


def _no_interval(lockstep: Lockstep) -> str:
    groups, batch = len(lockstep.sizes), lockstep.batch
    noun = "group" if groups == 1 else "groups"
    return (
        f"{groups} {noun} of {batch} documents; an interval needs {DOCUMENTS_NEEDED}, "
        f"{DOCUMENTS_NEEDED * batch} documents"
    )
