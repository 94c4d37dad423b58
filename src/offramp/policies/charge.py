"""A policy's run over a trace and its charge, usage times prices, wherever a policy is charged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from offramp.costs.machine import Machine
from offramp.defaults import SEED
from offramp.policies.cost_breakdown import CostBreakdown, PriceAt, Usage, break_down
from offramp.policies.decisions import Decisions, replay_decisions, task_of
from offramp.policies.kv import STRATEGIES, KeyValue, PolicyRun, executed_layers, maps_charged
from offramp.policies.policy import ExitPolicy
from offramp.policies.prices import prices_at
from offramp.policies.rules.short_list import seen_by
from offramp.policies.steps import BATCHINGS, count_plain, group_into_steps
from offramp.scoring.documents import document_rows
from offramp.scoring.estimate import DOCUMENTS_NEEDED, DocumentBootstrap, document_bootstrap
from offramp.tracing.trace import Trace


def run_of(
    trace: Trace,
    policy: ExitPolicy,
    decisions: Decisions | None = None,
    *,
    batch: int = 1,
    batching: str = "lockstep",
    draft_length: int = 1,
    seed: int = SEED,
) -> PolicyRun:
    """A policy's decisions on a trace, its tokens grouped into steps: ready to be charged.

    decisions: of one token after the other, if they are known.

    Raises PolicyError if the policy does not fit the trace or the batch.
    """
    own = policy.for_task(task_of(trace))
    trace = seen_by(own, trace)
    if decisions is not None:
        return PolicyRun(trace, own, decisions, np.arange(trace.token_count, dtype=np.int64))
    steps = group_into_steps(trace.document, batch, seed)
    decisions = BATCHINGS[batching](replay_decisions(own, trace), steps)
    return PolicyRun(trace, own, decisions, steps, draft_length, batch)


def prices_for(
    trace: Trace, machine: Machine | None, kv: str, *, batch: int = 1, position: float | None = None
) -> PriceAt:
    """Prices of a step by its rows, K,V maps included where the strategy takes them.

    Seconds on a machine at a position, by default the trace's mean; bytes moved without one.

    Raises InputError for a trace without tokens or what the machine cannot price; PolicyError for mapping
    without maps.
    """
    return prices_at(trace, machine or "bytes", maps_charged(trace, kv), batch=batch, position=position)


@dataclass(frozen=True)
class Charge:
    """What a run executes with a strategy for K and V, and what that costs."""

    run: PolicyRun
    strategy: KeyValue

    @classmethod
    def of(cls, run: PolicyRun, kv: str) -> Charge:
        """With the strategy of that name."""
        return cls(run, STRATEGIES[kv])

    @cached_property
    def usage(self) -> Usage:
        """What the policy runs."""
        return self.strategy.charge(self.run)

    @cached_property
    def unchecked(self) -> Usage:
        """The same exits without a single check: each output then takes a head product of its own."""
        return self.strategy.charge(replace(self.run, decisions=self.run.decisions.unchecked()))

    @cached_property
    def plain(self) -> Usage:
        """What the full model runs in the same steps."""
        return count_plain(self.run.steps, self.run.trace.layers)

    @property
    def layers(self) -> int:
        """Layers that are executed, sooner or later."""
        return executed_layers(self.usage, self.run.trace.shape)

    @property
    def skip_ratio(self) -> float:
        """Share of the full model's layers that are not."""
        return 1.0 - self.layers / (self.run.trace.token_count * self.run.trace.layers)

    @property
    def outputs(self) -> NDArray[np.int64]:
        """The exit that each token's output is of: int64 [tokens]."""
        exits = self.run.decisions.exits
        return np.full_like(exits, self.run.trace.layers) if self.strategy.lossless else exits

    def breakdown(self, at: PriceAt, *, checks_free: bool = False) -> CostBreakdown:
        """What it costs at some prices, beside the full model."""
        usage = self.unchecked if checks_free else self.usage
        return break_down(usage, self.plain, at, self.run.trace.token_count)


def prices_of_answers(
    trace: Trace, policy: ExitPolicy, kv: str, exits: Sequence[Sequence[int]], at: PriceAt
) -> list[float]:
    """What a token of each of some decoded answers takes over a token of the full model, by price.

    trace: of the model, for its sizes. exits: where the tokens of each answer left; of the first the prompt's
    run decided. Empty where a policy does not check each of its exits up to the one that a token takes, as
    its replay on the trace tells: what it checked is then not known from where it left.
    """
    decided = replay_decisions(policy, trace)
    if decided.probed is not None:
        return []
    found = []
    for left in exits:
        decoded = np.asarray(left[1:], dtype=np.int64)
        if len(decoded):
            one_document = trace.at_rows(np.zeros(len(decoded), dtype=np.int64))
            run = run_of(one_document, policy, replace(decided, exits=decoded))
            paid = Charge.of(run, kv).breakdown(at)
            found.append(paid.per_token / paid.plain_per_token)
    return found


@dataclass(frozen=True)
class Units:
    """The independent parts of a run: its documents, or of a batch the groups that are decoded together.

    Documents of one group depend on each other through their exits, so that intervals are over groups.
    """

    run: PolicyRun
    of_row: NDArray[np.int64]
    """The unit of each token: int64 [tokens]."""
    of_document: NDArray[np.int64]
    """The unit of each document: int64 [documents], canonical order."""

    @classmethod
    def of(cls, run: PolicyRun) -> Units:
        """Those of a run, in the order of their steps."""
        rows = document_rows(run.trace)
        # The first tokens of a unit's documents are one step, which no other unit has.
        units = np.unique(run.steps[rows.starts], return_inverse=True)[1].astype(np.int64)
        return cls(run, np.repeat(units, rows.lengths), units[rows.order])

    @property
    def sizes(self) -> NDArray[np.int64]:
        """Documents of each, fewer than the batch in a last one: int64 [units]."""
        return np.bincount(self.of_document)

    def canonical(self) -> list[PolicyRun]:
        """The run of each, in an order that depends on ids only."""
        return [self.at(unit) for unit in dict.fromkeys(self.of_document.tolist())]

    def at(self, unit: int) -> PolicyRun:
        """The run of one of them, its steps counted from 0."""
        rows = self.of_row == unit
        return replace(
            self.run,
            trace=self.run.trace.at_rows(rows),
            decisions=self.run.decisions.at_rows(rows),
            steps=np.unique(self.run.steps[rows], return_inverse=True)[1].astype(np.int64),
        )

    def sums(self, values: NDArray[np.float64] | NDArray[np.bool_]) -> NDArray[np.float64]:
        """Sums over the tokens of each: [tokens] -> float64 [units]."""
        return np.bincount(self.of_row, weights=values).astype(np.float64)

    def bootstrap(self, draws: int, seed: int) -> DocumentBootstrap:
        """Units drawn with replacement."""
        count, batch = len(self.sizes), self.run.batch
        bootstrap = document_bootstrap(count, draws=draws, seed=seed)
        if bootstrap.no_interval is None or batch == 1:
            return bootstrap
        why = (
            f"{count} group{'' if count == 1 else 's'} of {batch} documents; an interval needs "
            f"{DOCUMENTS_NEEDED}, {DOCUMENTS_NEEDED * batch} documents"
        )
        return replace(bootstrap, no_interval=why)
