"""Replaying one policy on a trace: where each token would leave, and what that would save and lose."""

from __future__ import annotations

import numpy as np

from offramp.costs.token import Prices
from offramp.policies.charging import exit_costs, exit_costs_without_probes, prices_of, probes_made
from offramp.policies.grammar import parse_policy
from offramp.policies.policy import ExitPolicy
from offramp.policies.results import ReplayResult
from offramp.scoring.documents import fact_of
from offramp.tracing.trace import Trace


def replay(trace: Trace, policy: ExitPolicy | str, costs: Prices | None = None) -> ReplayResult:
    """Where each token of the trace leaves under the policy, with agreement and every cost charged.

    policy: a policy, or the text of one (see `parse_policy`).

    costs: price lists in bytes and FLOPs; by default those of the trace's model at its mean position.

    Raises PolicyError if the policy does not fit the trace, InputError for a trace without tokens.
    """
    if isinstance(policy, str):
        policy = parse_policy(policy)
    prices = prices_of(trace) if costs is None else costs
    exits = policy.choose(trace)
    checked = policy.checked_exits(trace.layers)
    columns = np.searchsorted(trace.exits, exits)
    rows = np.arange(trace.token_count)
    # Sums over exits, not tokens: the full model's bill is then exactly the plain one.
    leaving = np.bincount(exits - 1, minlength=trace.layers).astype(np.float64)
    charged = float(leaving @ exit_costs(prices.bytes, checked))
    unprobed = float(leaving @ exit_costs_without_probes(prices.bytes))
    flops = float(leaving @ exit_costs(prices.flops, checked))
    nll, divergence = fact_of(trace, "nll"), fact_of(trace, "kl_to_final")
    return ReplayResult(
        policy=str(policy),
        exits=exits,
        probes=probes_made(trace.layers, checked)[exits - 1],
        agreement=float(np.mean(trace.agreement[rows, columns])),
        skip_ratio=float(1.0 - np.mean(exits) / trace.layers),
        predicted_speedup=trace.token_count * prices.bytes.plain / charged,
        predicted_speedup_flops=trace.token_count * prices.flops.plain / flops,
        speedup_without_probes=trace.token_count * prices.bytes.plain / unprobed,
        probe_share=1.0 - unprobed / charged,
        nll_increase=float(
            np.mean(nll[rows, columns], dtype=np.float64) - np.mean(nll[:, -1], dtype=np.float64)
        ),
        kl=float(np.mean(divergence[rows, columns], dtype=np.float64)),
    )
