"""The exact frontier of a threshold rule: agreement, skip ratio and speedup at every distinct threshold."""

from __future__ import annotations

import numpy as np

from offramp.costs.token import TokenCosts
from offramp.errors import PolicyError
from offramp.policies.charging import exit_costs, exit_costs_without_probes, prices_of
from offramp.policies.results import Frontier
from offramp.policies.rules.threshold import Threshold, signal_needs
from offramp.policies.signals import find_signal
from offramp.policies.sweep import side_by_side, sweep
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
    Threshold(signal, 0.0, checked).needs(trace.layers)
    prices = prices_of(trace).bytes if costs is None else costs
    # Two columns are read from disk in the time of one; `agreement` then finds its own in the trace.
    side_by_side(trace.fact, (rule.fact, "top1"))
    # The first check of a signal that compares exits never lets a token leave.
    moves = sweep(trace, rule, checked[1:] if rule.opens else checked, trace.agreement)
    charged, unprobed = exit_costs(prices, signal_needs(rule, checked)), exit_costs_without_probes(prices)
    depth = np.arange(1.0, trace.layers + 1.0)
    agreement, skipped, speedup, speedup_unprobed = moves.running(
        [moves.agreement_change, moves.change(depth), moves.change(charged), moves.change(unprobed)]
    )
    tokens = trace.token_count
    # In place: with one point a move each of these is as large as the trace.
    np.divide(np.add(agreement, tokens, out=agreement), tokens, out=agreement)
    np.divide(skipped, -float(tokens * trace.layers), out=skipped)
    for total, per_exit in ((speedup, charged), (speedup_unprobed, unprobed)):
        np.divide(tokens * prices.plain, np.add(total, tokens * per_exit[-1], out=total), out=total)
    return Frontier(
        signal=signal,
        exits=checked,
        threshold=moves.thresholds,
        agreement=agreement,
        skip_ratio=np.add(skipped, 0.0, out=skipped),
        speedup=speedup,
        speedup_without_probes=speedup_unprobed,
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
