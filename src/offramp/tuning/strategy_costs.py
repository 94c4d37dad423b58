"""What policies take on one machine at batch 1, each charged as its own K,V strategy runs it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from offramp.costs.machine import Machine
from offramp.costs.probes import MapRanks
from offramp.policies.cost_breakdown import CostBreakdown, Gain, PriceAt, Usage, break_down, split_gain
from offramp.policies.decisions import Decisions, task_of
from offramp.policies.kv import STRATEGIES, PolicyRun, executed_layers, maps_charged
from offramp.policies.policy import ExitPolicy
from offramp.policies.policy_cost import counted_at, seconds_at
from offramp.policies.replay import replay
from offramp.policies.rules.short_list import seen_by
from offramp.policies.steps import count_plain
from offramp.scoring.documents import document_rows
from offramp.tracing.trace import Trace

DRAFT_LENGTHS = (1, 2, 4)
"""Drafts before a verification that are tried."""


@dataclass(frozen=True)
class Charged:
    """What the tokens of each document take: float64 [documents] each, in the order of `document_rows`.

    cost: with the policy; without_probes: with checks for free; plain: of the full model. layers: that are
    executed, sooner or later.
    """

    cost: NDArray[np.float64]
    without_probes: NDArray[np.float64]
    plain: NDArray[np.float64]
    layers: NDArray[np.float64]


class StrategyCosts:
    """Prices of one token after the other of a trace's model: seconds on a machine, bytes without one."""

    def __init__(self, trace: Trace, machine: Machine | None) -> None:
        self.machine = machine
        self._trace = trace
        self._by_maps: dict[MapRanks, PriceAt] = {}

    def _at(self, kv: str) -> PriceAt:
        """Prices of a step by its rows, with the K,V maps that a strategy is charged for."""
        maps = maps_charged(self._trace, kv)
        if maps not in self._by_maps:
            machine, trace = self.machine, self._trace
            self._by_maps[maps] = (
                counted_at(trace, "bytes", maps) if machine is None else seconds_at(trace, machine, maps=maps)
            )
        return self._by_maps[maps]

    def of_documents(self, trace: Trace, policy: ExitPolicy, kv: str, decisions: Decisions) -> Charged:
        """What a trace's documents take. decisions: where their tokens leave."""
        rows = document_rows(trace)
        each = []
        for start, length in zip(rows.starts, rows.lengths, strict=True):
            taken = np.arange(start, start + length)
            each.append(self._charge(trace.at_rows(taken), policy, kv, decisions.at_rows(taken)))
        columns = np.array(each, dtype=np.float64)[rows.order].T
        return Charged(*columns)

    def of_token(
        self, trace: Trace, policy: ExitPolicy, kv: str, decisions: Decisions
    ) -> tuple[float, float]:
        """Mean cost of a token, with the policy and plainly."""
        cost, _, plain, _ = self._charge(trace, policy, kv, decisions)
        return cost / trace.token_count, plain / trace.token_count

    def gain(self, trace: Trace, policy: ExitPolicy, kv: str, decisions: Decisions) -> Gain:
        """What each part of a step saves of plain decoding, over all tokens."""
        run = _run(trace, policy, decisions)
        return split_gain(self._breakdown(run, kv, STRATEGIES[kv].charge(run)))

    def of_drafts(self, trace: Trace, policy: ExitPolicy, kv: str) -> tuple[float, float, int]:
        """The cheapest way to verify outputs as drafts: cost of a token, plain cost, draft length."""
        found = []
        for length in DRAFT_LENGTHS:
            breakdown = replay(trace, policy, machine=self.machine, kv=kv, draft_length=length).breakdown
            found.append((breakdown.total / breakdown.tokens, breakdown.plain / breakdown.tokens, length))
        return min(found)

    def _charge(
        self, trace: Trace, policy: ExitPolicy, kv: str, decisions: Decisions
    ) -> tuple[float, float, float, float]:
        """The columns of `Charged`, of all tokens together."""
        run, count = _run(trace, policy, decisions), STRATEGIES[kv].charge
        usage = count(run)
        breakdown = self._breakdown(run, kv, usage)
        free = self._breakdown(run, kv, count(replace(run, decisions=decisions.unchecked())))
        return breakdown.total, free.total, breakdown.plain, executed_layers(usage, trace.shape)

    def _breakdown(self, run: PolicyRun, kv: str, usage: Usage) -> CostBreakdown:
        """What runs, and what plain decoding of the same tokens runs, at this machine's prices."""
        plain = count_plain(run.steps, run.trace.layers)
        return break_down(usage, plain, self._at(kv), run.trace.token_count)


def _run(trace: Trace, policy: ExitPolicy, decisions: Decisions) -> PolicyRun:
    """The tokens of a trace one after the other, as their own task's policy sees them."""
    own = policy.for_task(task_of(trace))
    steps = np.arange(trace.token_count, dtype=np.int64)
    return PolicyRun(seen_by(own, trace), own, decisions, steps, draft_length=1)
