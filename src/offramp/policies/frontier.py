"""The exact frontier of a threshold rule: agreement, skip ratio and speedup at every distinct threshold."""

from __future__ import annotations

from offramp.costs.token import TokenCosts
from offramp.errors import PolicyError
from offramp.policies.charging import exit_costs, exit_costs_without_probes, layers_executed, prices_of
from offramp.policies.results import Frontier
from offramp.policies.rules.threshold import Threshold
from offramp.policies.signals import find_signal
from offramp.policies.sweep import side_by_side, sweep
from offramp.policies.walk import require_comparisons
from offramp.tracing.trace import Trace


def frontier(
    trace: Trace, signal: str, exits: tuple[int, ...] | None = None, costs: TokenCosts | None = None
) -> Frontier:
    """Every distinct operating point of the rule "leave at the first of these exits that passes".

    exits: ascending, below L; by default all that were traced. costs: prices of one token; by default bytes
    moved by the trace's model at its mean position. The first point, at an infinite threshold, never leaves
    early but still pays every probe.

    Raises PolicyError for an unknown signal, too few exits, exits beyond the model or not traced, a NaN, or a
    signal that was recorded against other exits than these.
    """
    rule = find_signal(signal)
    checked = tuple(int(exit) for exit in trace.exits if exit < trace.layers) if exits is None else exits
    if not checked:
        raise PolicyError("no exits to check", fix=f"choose exits from 1 to {trace.layers - 1}")
    needs = Threshold(signal, 0.0, checked).needs(trace.layers)
    require_comparisons(needs, trace)
    prices = prices_of(trace).bytes if costs is None else costs
    # Two columns are read from disk in the time of one; `agreement` then finds its own in the trace.
    side_by_side(trace.fact, (rule.fact, "top1"))
    # The first check of a signal that compares exits never lets a token leave.
    moves = sweep(trace, rule, checked[1:] if rule.opens else checked, trace.agreement)
    charged, unprobed = exit_costs(prices, needs), exit_costs_without_probes(prices)
    skipped = trace.layers - layers_executed(trace.shape)
    tokens, layers, plain = trace.token_count, trace.layers, trace.token_count * prices.plain
    agreement, skip_ratio, speedup, speedup_unprobed = moves.running(
        [
            moves.agreeing(lambda count: count / tokens),
            moves.summed(skipped, lambda total: total / (tokens * layers)),
            moves.summed(charged, lambda total: plain / total),
            moves.summed(unprobed, lambda total: plain / total),
        ]
    )
    return Frontier(
        signal=signal,
        exits=checked,
        threshold=moves.thresholds(),
        agreement=agreement,
        skip_ratio=skip_ratio,
        speedup=speedup,
        speedup_without_probes=speedup_unprobed,
    )
