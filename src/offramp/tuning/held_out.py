"""A policy's figures on documents that its choice never saw, with intervals over documents."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from offramp.policies.cost_breakdown import Gain
from offramp.policies.policy import ExitPolicy
from offramp.policies.policy_cost import layers_executed
from offramp.policies.rules.short_list import seen_by
from offramp.policies.walk import Walk, task_of, walk
from offramp.scoring.documents import document_rows
from offramp.scoring.estimate import DocumentBootstrap, Estimate, document_bootstrap
from offramp.tracing.trace import Trace
from offramp.tuning.floor import Floor
from offramp.tuning.losses import document_losses, risk_to_quality, token_losses
from offramp.tuning.pricing import Pricing, WalkCounts, count_walk

DRAWS = 2000


@dataclass(frozen=True)
class HeldOut:
    """What a policy does on some documents.

    quality: in the floor's unit, mean over documents. agreement, skip_ratio: means over tokens;
    reference_agreement too, None for a model without transforms. net_speedup,
    cost: of a token on the pricing's machine, plain_cost: of one of the full model. probe_share: probes'
    share of the cost; probe_cost: of a token.
    counts: what is charged, on no tokens where there are no documents. gain: what each part of a step saves,
    None where that is not known of a batch, or without documents.
    """

    quality: Estimate
    agreement: Estimate
    skip_ratio: Estimate
    net_speedup: Estimate
    cost: Estimate
    plain_cost: float
    probe_share: float
    probe_cost: float
    counts: WalkCounts
    reference_agreement: Estimate | None = None
    gain: Gain | None = None


@lru_cache(maxsize=4)
def _drawn(documents: int, seed: int) -> DocumentBootstrap:
    """The same draws for every policy that is measured on so many documents."""
    return document_bootstrap(documents, draws=DRAWS, seed=seed)


def measure(trace: Trace, policy: ExitPolicy, pricing: Pricing, floor: Floor, seed: int) -> HeldOut:
    """A policy on the documents of a trace; intervals need 20 of them.

    Raises PolicyError if the policy does not fit the trace, InputError for a trace without tokens.
    """
    own = policy.for_task(task_of(trace))
    trace, pricing = seen_by(own, trace), pricing.paid_by(own)
    rows = document_rows(trace)
    walked = walk(policy, trace)
    exits, counts = walked.exits, count_walk(walked, trace.layers)
    bootstrap = _drawn(rows.count, seed)
    weights = bootstrap.weights
    taken = np.arange(trace.token_count), np.searchsorted(trace.exits, exits)
    reference = trace.reference_agreement
    risk = (weights @ document_losses(trace, token_losses(trace, floor), exits)) / weights.sum(axis=1)
    cost = pricing.of_documents(walked, rows, weights)
    # The full model's cost takes the same way through the sums, so that its own speedup is exactly 1.
    never = Walk(np.full_like(exits, trace.layers), {})
    plain = pricing.of_full_model.of_documents(never, rows, weights)
    charged = float(cost[0])
    probes = charged - pricing.without_probes(walked)

    def mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> NDArray[np.float64]:
        return bootstrap.means(rows.sums(values), rows.tokens)

    return HeldOut(
        quality=bootstrap.estimate(np.asarray([risk_to_quality(floor, one) for one in risk])),
        agreement=bootstrap.estimate(mean(trace.agreement[taken])),
        skip_ratio=bootstrap.estimate(mean(1.0 - layers_executed(trace.shape)[exits - 1] / trace.layers)),
        net_speedup=bootstrap.estimate(plain / cost),
        cost=bootstrap.estimate(cost),
        plain_cost=pricing.plain,
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
        walked = walk(own, seen_by(own, trace))
        return pricing.paid_by(own).of_documents(walked, rows, bootstrap.weights)

    return bootstrap.estimate(cost(other) / cost(policy))


def unmeasured(why: str, plain_cost: float, *, transformed: bool = False) -> HeldOut:
    """The figures where there are no documents to measure on. transformed: whether there is a reference."""
    nothing, nobody = Estimate(None, undefined=why), np.zeros(0, dtype=np.int64)
    counts = WalkCounts(nobody, {}, nobody, nobody)
    return HeldOut(*(nothing,) * 5, plain_cost, 0.0, 0.0, counts, nothing if transformed else None)
