"""The exact frontier of a threshold rule: agreement, skip ratio and speedup at every distinct threshold."""

from __future__ import annotations

import math

import numpy as np

from offramp.costs.token import TokenCosts
from offramp.errors import PolicyError
from offramp.policies.charging import exit_costs, exit_costs_without_probes, prices_of
from offramp.policies.kinds import Threshold
from offramp.policies.results import Frontier
from offramp.policies.signals import find_signal
from offramp.policies.sweep import sweep
from offramp.tracing.trace import Trace


def frontier(
    trace: Trace, signal: str, exits: tuple[int, ...] | None = None, costs: TokenCosts | None = None
) -> Frontier:
    """Every distinct operating point of the rule "leave at the first of these exits that passes".

    exits: ascending, below L; by default all that were traced. costs: prices of one token; by default bytes
    moved by the trace's model at its mean position. The first point, at an infinite threshold, never leaves
    early but still pays every probe.

    Raises PolicyError for an unknown signal, no exits, exits beyond the model or not traced, or a NaN.
    """
    rule = find_signal(signal)
    checked = tuple(int(exit) for exit in trace.exits if exit < trace.layers) if exits is None else exits
    if not checked:
        raise PolicyError("no exits to check", fix=f"choose exits from 1 to {trace.layers - 1}")
    Threshold(signal, 0.0, checked).checked_exits(trace.layers)
    prices = prices_of(trace).bytes if costs is None else costs
    moves = sweep(trace, rule, checked, trace.agreement)
    plain = trace.token_count * prices.plain
    depth = np.arange(1.0, trace.layers + 1.0)
    charged, unprobed = exit_costs(prices, checked), exit_costs_without_probes(prices)
    never = math.inf if rule.exit_when == "at least" else -math.inf
    return Frontier(
        signal=signal,
        exits=checked,
        threshold=np.concatenate([[never], moves.threshold]),
        agreement=np.concatenate([[1.0], moves.agreement_count() / trace.token_count]),
        skip_ratio=np.concatenate([[0.0], 1.0 - moves.total(depth) / (trace.token_count * trace.layers)]),
        speedup=np.concatenate([[prices.plain / charged[-1]], plain / moves.total(charged)]),
        speedup_without_probes=np.concatenate([[1.0], plain / moves.total(unprobed)]),
    )


def envelope(points: Frontier) -> Frontier:
    """The points that nothing beats: no bolder point agrees as often. Lossless for "fastest at this floor".

    A bolder point leaves earlier with fewer probes, so it is never slower; points run from cautious to bold.
    """
    best_after = np.maximum.accumulate(points.agreement[::-1])[::-1]
    kept = np.append(points.agreement[:-1] > best_after[1:], True)
    return Frontier(
        signal=points.signal,
        exits=points.exits,
        threshold=points.threshold[kept],
        agreement=points.agreement[kept],
        skip_ratio=points.skip_ratio[kept],
        speedup=points.speedup[kept],
        speedup_without_probes=points.speedup_without_probes[kept],
    )
