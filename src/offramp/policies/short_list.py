"""A trace and prices as a policy sees them whose outputs are read off the short list of tokens."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from offramp.costs.token import TokenCosts
from offramp.policies.policy import ExitPolicy
from offramp.scoring.documents import fact_of
from offramp.tracing.trace import FactArray, Trace

# These are of the whole head: a token outside the list has no probability on it.
OF_WHOLE_HEAD = ("nll", "kl_to_final")


def read_short(trace: Trace, *, head: bool = False) -> Trace:
    """The same trace whose `top1` below exit L is the best token of the short list; with `head`, at L too.

    What outputs are compared with stays the full model's own token. Losses in nats are not a number where the
    list is read. Raises InputError if the short list was not recorded, with the option that records it.
    """
    fact_of(trace, "restricted_top1")
    below = slice(None) if head else slice(None, -1)
    full = trace.full_top1

    def facts(name: str) -> FactArray:
        whole = trace.fact(name)
        if name == "top1":
            whole = whole.copy()
            whole[:, below] = trace.fact("restricted_top1")[:, below]
        elif name in OF_WHOLE_HEAD:
            whole = whole.copy()
            whole[:, below] = np.nan
        return whole

    return trace.with_facts(facts, full_top1=full)


def seen_by(policy: ExitPolicy, trace: Trace) -> Trace:
    """The trace as the policy's outputs make it: through the short list if it reads that."""
    return read_short(trace, head=policy.short_head) if policy.short_list else trace


def costs_for(policy: ExitPolicy, costs: TokenCosts) -> TokenCosts:
    """The price list that the policy pays, whose `plain` is then not the full model's.

    costs: as they were counted or timed.
    """
    return replace(
        costs,
        exit_head=costs.short_exit_head if policy.short_list else costs.exit_head,
        head=costs.short_head if policy.short_head else costs.head,
    )
