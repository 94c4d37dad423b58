"""A trace and prices as a policy sees them whose exits are read off the short list of tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from offramp.costs.token import TokenCosts
from offramp.policies.bill import PriceAt
from offramp.policies.policy import ExitPolicy
from offramp.scoring.documents import fact_of
from offramp.tracing.trace import FactArray, Trace

# Below L these are of the whole head: a token outside the list has no probability on it.
OF_WHOLE_HEAD = ("nll", "kl_to_final")


def read_short(trace: Trace) -> Trace:
    """The same trace whose `top1` below exit L is the best token of the short list; L stays as it is.

    Losses in nats are not a number there. Raises InputError if the short list was not recorded, with the
    option that records it.
    """
    fact_of(trace, "restricted_top1")

    def facts(name: str) -> FactArray:
        whole = trace.fact(name)
        if name == "top1":
            return np.concatenate([trace.fact("restricted_top1")[:, :-1], whole[:, -1:]], axis=1)
        if name in OF_WHOLE_HEAD:
            return np.concatenate([np.full_like(whole[:, :-1], np.nan), whole[:, -1:]], axis=1)
        return whole

    return trace.with_facts(facts)


def seen_by(policy: ExitPolicy, trace: Trace) -> Trace:
    """The trace as the policy's outputs make it: through the short list if it reads that."""
    return read_short(trace) if policy.short_list else trace


def short_costs(costs: TokenCosts) -> TokenCosts:
    """The price list whose output at an exit below L is a product with the short list's columns."""
    return replace(costs, exit_head=costs.probes["restricted head"])


def costs_for(policy: ExitPolicy, costs: TokenCosts) -> TokenCosts:
    """The price list that the policy pays."""
    return short_costs(costs) if policy.short_list else costs


def prices_for(policy: ExitPolicy, at: PriceAt) -> PriceAt:
    """The prices that the policy pays, by the number of rows."""
    return (lambda rows: short_costs(at(rows))) if policy.short_list else at
