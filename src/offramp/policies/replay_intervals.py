"""Intervals of a replay's figures over documents, for every strategy and batch size."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from offramp.costs.machine import Machine
from offramp.policies.batching import count_plain
from offramp.policies.bill import PARTS, PriceAt, Usage
from offramp.policies.charging import counted_at, machine_for, seconds_at
from offramp.policies.grammar import parse_policy_for
from offramp.policies.map_ranks import maps_charged
from offramp.policies.policy import ExitPolicy
from offramp.policies.repair import KeyValueStrategy, Run, executed_layers
from offramp.policies.replay import check_options, run_of
from offramp.scoring.documents import document_rows
from offramp.scoring.estimate import DOCUMENTS_NEEDED, Estimate, document_bootstrap
from offramp.tracing.trace import Trace


@dataclass(frozen=True)
class ReplayIntervals:
    """Figures of a replay with 95 % intervals. net_speedup: its `predicted_speedup`."""

    agreement: Estimate
    skip_ratio: Estimate
    net_speedup: Estimate


def replay_intervals(
    trace: Trace,
    policy: ExitPolicy | str,
    *,
    machine: Machine | str | None = None,
    kv: str = "propagate",
    batch: int = 1,
    batching: str = "lockstep",
    draft_length: int = 4,
    seed: int = 0,
    draws: int = 1000,
) -> ReplayIntervals:
    """The figures that `replay` gives with the same options, bootstrapped over documents.

    A policy walks through the trace once, whatever it learns on the way; what is drawn again are the tokens
    and costs of documents. Those of one batch depend on each other through their exits: groups of a batch are
    then the unit, and 20 of them are needed. seed: of the groups and of the draws.

    Raises what `replay` raises, and InputError for fewer than 40 draws.
    """
    strategy = check_options(kv, batch, batching, draft_length)
    if isinstance(policy, str):
        policy = parse_policy_for(policy, trace)
    machine = None if machine is None else machine_for(trace, machine)
    maps = maps_charged(trace, kv)
    at = counted_at(trace, "bytes", maps)
    if machine is not None:
        at = seconds_at(trace, machine, batch=batch, maps=maps)
    run = run_of(trace, policy, batch=batch, batching=batching, draft_length=draft_length, seed=seed)
    sums = np.array([_sums(one, strategy, at) for one in _units(run)])
    tokens, agreeing, executed, cost, plain = sums.T
    bootstrap = document_bootstrap(len(sums), draws=draws, seed=seed)
    if bootstrap.no_interval is not None and batch > 1:
        why = (
            f"{len(sums)} groups of {batch} documents; an interval needs {DOCUMENTS_NEEDED}, "
            f"{DOCUMENTS_NEEDED * batch} documents"
        )
        bootstrap = replace(bootstrap, no_interval=why)
    skipped = 1.0 - bootstrap.means(executed / run.trace.layers, tokens)
    return ReplayIntervals(
        agreement=bootstrap.estimate(bootstrap.means(agreeing, tokens)),
        skip_ratio=bootstrap.estimate(skipped),
        net_speedup=bootstrap.estimate(bootstrap.totals(plain) / bootstrap.totals(cost)),
    )


def _units(run: Run) -> Iterator[Run]:
    """The run of each document, or of each group of a batch, in an order that depends on ids only."""
    trace = run.trace
    rows = document_rows(trace)
    # The first tokens of a group's documents are one step, which no other group has.
    group_of_document = run.steps[rows.starts]
    group_of_row = np.repeat(group_of_document, rows.lengths)
    for group in dict.fromkeys(group_of_document[rows.order].tolist()):
        taken = group_of_row == group
        documents = np.unique(trace.document[taken]).astype(np.int64)
        probed = None if run.walk.probed is None else run.walk.probed[taken]
        yield replace(
            run,
            trace=trace.subset(documents),
            walk=replace(run.walk, exits=run.walk.exits[taken], probed=probed),
            steps=np.unique(run.steps[taken], return_inverse=True)[1].astype(np.int64),
        )


def _sums(run: Run, strategy: KeyValueStrategy, at: PriceAt) -> tuple[float, ...]:
    """Tokens, tokens that agree, layers executed, the policy's cost and the full model's, in sum."""
    trace, usage = run.trace, strategy.count(run)
    columns = np.searchsorted(trace.exits, _outputs(run, strategy))
    return (
        float(trace.token_count),
        float(trace.agreement[np.arange(trace.token_count), columns].sum()),
        float(executed_layers(usage, trace.shape)),
        _total(usage, at),
        _total(count_plain(run.steps, trace.layers), at),
    )


def _outputs(run: Run, strategy: KeyValueStrategy) -> NDArray[np.int64]:
    """The exit that each token's output is of: int64 [tokens]."""
    return np.full_like(run.walk.exits, run.trace.layers) if strategy.exact else run.walk.exits


def _total(usage: Usage, at: PriceAt) -> float:
    return sum(count * PARTS[item.part](at, item) for item, count in usage.items() if count)
