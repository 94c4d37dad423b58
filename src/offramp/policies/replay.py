"""Replaying one policy on a trace: where each token would leave, what that saves and loses; intervals."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from offramp.costs.machine import Machine
from offramp.costs.probes import MapRanks
from offramp.costs.token import Prices, TokenCosts
from offramp.display import ShownAsHtml
from offramp.errors import InputError
from offramp.kit.arguments import checked
from offramp.kit.defaults import DRAFT_LENGTH, DRAWS, SEED
from offramp.kit.numbers import Count, Whole
from offramp.kit.typed import NumberOrNan
from offramp.policies.binding import TunedOn, seen_notes
from offramp.policies.cost_breakdown import PARTS, CostBreakdown, Gain, PriceAt, Usage, break_down, split_gain
from offramp.policies.decisions import replay_decisions, task_of, tokens_by_exit
from offramp.policies.figures import PolicyFigures
from offramp.policies.grammar import parse_policy_for, tuned_on
from offramp.policies.kv import STRATEGIES, KeyValue, PolicyRun, executed_layers, maps_charged
from offramp.policies.names import BatchingName, BatchOf, StrategyName
from offramp.policies.policy import ExitPolicy
from offramp.policies.policy_cost import (
    counted_at,
    derived_notes,
    fitted_sizes,
    lookup_notes,
    machine_for,
    mean_position,
    price_notes,
    probes_made,
    seconds_at,
)
from offramp.policies.rules.short_list import seen_by
from offramp.policies.steps import BATCHINGS, count_plain, group_into_steps
from offramp.scoring.documents import document_rows, fact_of
from offramp.scoring.estimate import DOCUMENTS_NEEDED, Draws, Estimate, document_bootstrap
from offramp.tracing.trace import Trace


@dataclass(frozen=True, kw_only=True)
class ReplayFigures(PolicyFigures[float]):
    """What a replay says in figures, means over the trace's tokens.

    nll_increase, kl: in nats.
    skip_ratio: a layer that a K,V strategy runs for a token afterwards is not skipped. Below 0 where wrong
    drafts are run for nothing.
    basis: what `predicted_speedup` is counted in: "bytes moved", or seconds on the machine of that name.
    predicted_speedup_flops: the same in FLOPs; speedup_without_probes: probes left out of it.
    seconds_per_token, plain_seconds_per_token: on the machine, None without one. batch, batching: rows of a
    step, and how they leave. notes: what to bear in mind of its prices, and of documents that the policy or
    the exit heads have seen.
    """

    READ_OFF: ClassVar[tuple[str, ...]] = ("predicted_speedup",)

    # Said again for who reads them from a file: pydantic does not follow the type variable.
    agreement: float
    skip_ratio: float
    net_speedup: float
    reference_agreement: float | None = None
    predicted_speedup_flops: float
    speedup_without_probes: float
    nll_increase: NumberOrNan
    kl: NumberOrNan
    basis: str
    seconds_per_token: float | None
    plain_seconds_per_token: float | None
    batch: int
    batching: str
    notes: tuple[str, ...]

    @property
    def predicted_speedup(self) -> float:
        """Plain cost over policy cost (layers, probes, K,V repair and head), in its basis and batch size."""
        return self.net_speedup


@dataclass(frozen=True, repr=False, kw_only=True)
class ReplayResult(ReplayFigures, ShownAsHtml):
    """One policy replayed on one trace.

    exits: int64 [tokens], the exit each token leaves at (in lockstep, its step's). probes: int64 [tokens],
    checked exits where it was probed; what is charged, drafts that are made again included, is
    `breakdown.probes_per_token`. breakdown: every line of the cost, in bytes or seconds.
    """

    READ_OFF: ClassVar[tuple[str, ...]] = (
        *ReplayFigures.READ_OFF,
        "tokens",
        "tokens_by_exit",
        "probes_per_token",
    )
    NOT_KEPT: ClassVar[tuple[str, ...]] = ("exits", "probes", "breakdown")

    exits: NDArray[np.int64]
    probes: NDArray[np.int64]
    breakdown: CostBreakdown
    gain: Gain

    @property
    def tokens(self) -> int:
        """Of the trace."""
        return len(self.exits)

    @property
    def tokens_by_exit(self) -> dict[int, int]:
        """How many of them leave at each exit, ascending."""
        return tokens_by_exit(self.exits)

    @property
    def probes_per_token(self) -> float:
        """Probes that are charged, over tokens."""
        return self.breakdown.probes_per_token

    def __repr__(self) -> str:
        return (
            f"ReplayResult({self.policy}: agreement {self.agreement:.1%}, {self.skip_ratio:.1%} of the "
            f"layers skipped, predicted speed {self.predicted_speedup:.3f} by {self.basis}, "
            f"{len(self.exits):,} tokens)"
        )


@checked
def replay(
    trace: Trace,
    policy: ExitPolicy | str,
    costs: Prices | None = None,
    *,
    machine: Machine | str | None = None,
    kv: StrategyName = "propagate",
    batch: BatchOf = 1,
    batching: BatchingName = "lockstep",
    draft_length: Count = DRAFT_LENGTH,
    seed: Whole = SEED,
    position: float | None = None,
) -> ReplayResult:
    """Where each token of the trace leaves under the policy, with agreement and every cost charged.

    policy: a policy, or the text of one (see `parse_policy`), tuned on this model if it names a tuner's file.
    costs: price lists of a step of one row in bytes and FLOPs; by default those of the trace's model at its
    mean position. machine: prices in seconds too: a machine, or the name or TOML file of one ("local",
    "h100"). kv: "propagate", "mapped", "recompute", "speculate" or "monotone" (see
    `offramp.policies.kv`); the K,V maps of "mapped" are those of the trace's exit heads. batch:
    sequences decoded together, "lockstep" or "rebatch" (see `offramp.policies.steps`), grouped at random
    by `seed`. position: at which seconds are charged, by default the trace's mean. draft_length: tokens
    drafted before a verification, for "speculate".

    Raises PolicyError if the policy does not fit the trace, the strategy or the batch; InputError for a trace
    without tokens, or a machine that is unknown or cannot price it.

    >>> offramp.replay(trace, "static:exit=2").skip_ratio
    0.5
    """
    strategy = STRATEGIES[kv]
    source = policy
    if isinstance(policy, str):
        policy = parse_policy_for(policy, trace)
    mean_position(trace)  # refuses a trace without tokens
    given, machine = machine, None if machine is None else machine_for(trace, machine)
    maps = maps_charged(trace, kv)
    if costs is None:
        in_bytes, in_flops = counted_at(trace, "bytes", maps), counted_at(trace, "flops", maps)
    else:
        in_bytes, in_flops = (_only_one_row(one, maps) for one in (costs.bytes, costs.flops))
    run = run_of(trace, policy, batch=batch, batching=batching, draft_length=draft_length, seed=seed)
    trace, own, decisions, steps = run.trace, run.policy, run.decisions, run.steps
    usage, plain = strategy.charge(run), count_plain(steps, trace.layers)
    # The same exits without a single check: each output then takes a head product of its own.
    unchecked = strategy.charge(dataclasses.replace(run, decisions=decisions.unchecked()))
    seconds = None if machine is None else seconds_at(trace, machine, position, batch=batch, maps=maps)
    at = seconds or in_bytes
    breakdown = break_down(usage, plain, at, trace.token_count)
    unprobed = break_down(unchecked, plain, at, trace.token_count)
    quality = _quality(trace, _outputs(run, strategy))
    return ReplayResult(
        policy=policy,
        exits=decisions.exits,
        probes=probes_made(decisions),
        skip_ratio=1.0 - executed_layers(usage, trace.shape) / (trace.token_count * trace.layers),
        net_speedup=breakdown.speedup,
        predicted_speedup_flops=break_down(usage, plain, in_flops, trace.token_count).speedup,
        speedup_without_probes=unprobed.speedup,
        probe_share=1.0 - unprobed.total / breakdown.total,
        agreement=quality.agreement,
        reference_agreement=quality.reference_agreement,
        nll_increase=quality.nll_increase,
        kl=quality.kl,
        basis="bytes moved" if machine is None else machine.name,
        seconds_per_token=breakdown.total / breakdown.tokens if seconds else None,
        plain_seconds_per_token=breakdown.plain / breakdown.tokens if seconds else None,
        kv=kv,
        batch=batch,
        batching=batching,
        reachable=own.reachable,
        breakdown=breakdown,
        gain=split_gain(breakdown),
        notes=(
            *lookup_notes(given, machine),
            *price_notes(machine, trace, breakdown.batches),
            *derived_notes(machine, breakdown, lens=fitted_sizes(trace).lens),
            *seen_notes(trace, tuned_on(source) if isinstance(source, str) else TunedOn()),
        ),
    )


def run_of(
    trace: Trace, policy: ExitPolicy, *, batch: int, batching: str, draft_length: int, seed: int
) -> PolicyRun:
    """A policy's decisions on a trace, its tokens grouped into steps: ready to be charged.

    Raises PolicyError if the policy does not fit the trace or the batch.
    """
    own = policy.for_task(task_of(trace))
    trace = seen_by(own, trace)
    steps = group_into_steps(trace.document, batch, seed)
    return PolicyRun(
        trace, own, BATCHINGS[batching](replay_decisions(own, trace), steps), steps, draft_length
    )


@dataclass(frozen=True)
class _Quality:
    agreement: float
    reference_agreement: float | None
    nll_increase: float
    kl: float


def _quality(trace: Trace, exits: NDArray[np.int64]) -> _Quality:
    """Quality of the outputs at some exits, int64 [tokens]."""
    columns = np.searchsorted(trace.exits, exits)
    rows = np.arange(trace.token_count)
    reference = trace.reference_agreement
    nll, divergence = fact_of(trace, "nll"), fact_of(trace, "kl_to_final")
    increase = np.mean(nll[rows, columns], dtype=np.float64) - np.mean(nll[:, -1], dtype=np.float64)
    return _Quality(
        agreement=float(np.mean(trace.agreement[rows, columns])),
        reference_agreement=None if reference is None else float(np.mean(reference[rows, columns])),
        nll_increase=float(increase),
        kl=float(np.mean(divergence[rows, columns], dtype=np.float64)),
    )


def _only_one_row(costs: TokenCosts, maps: MapRanks) -> PriceAt:
    if set(costs.maps) < {exit for exit, _ in maps}:
        raise InputError(
            "the given prices are without those of the K,V maps",
            fix="make them with these, or leave the prices out",
        )

    def at(rows: int) -> TokenCosts:
        if rows != costs.batch:
            raise InputError(
                f"the given prices are those of a step of {costs.batch}, not of {rows}",
                fix="leave the prices out, or choose a strategy and a batch that need no others",
            )
        return costs

    return at


@dataclass(frozen=True)
class ReplayIntervals:
    """Figures of a replay with 95 % intervals. net_speedup: its `predicted_speedup`."""

    agreement: Estimate
    skip_ratio: Estimate
    net_speedup: Estimate


@checked
def replay_intervals(
    trace: Trace,
    policy: ExitPolicy | str,
    *,
    machine: Machine | str | None = None,
    kv: StrategyName = "propagate",
    batch: BatchOf = 1,
    batching: BatchingName = "lockstep",
    draft_length: Count = DRAFT_LENGTH,
    seed: Whole = SEED,
    draws: Draws = DRAWS,
) -> ReplayIntervals:
    """The figures that `replay` gives with the same options, bootstrapped over documents.

    A policy decides through the trace once, whatever it learns on the way; what is drawn again are the tokens
    and costs of documents. Those of one batch depend on each other through their exits: groups of a batch are
    then the unit, and 20 of them are needed. seed: of the groups and of the draws.

    Raises what `replay` raises, and InputError for fewer than 40 draws.
    """
    strategy = STRATEGIES[kv]
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


def _units(run: PolicyRun) -> Iterator[PolicyRun]:
    """The run of each document, or of each group of a batch, in an order that depends on ids only."""
    trace = run.trace
    rows = document_rows(trace)
    # The first tokens of a group's documents are one step, which no other group has.
    group_of_document = run.steps[rows.starts]
    group_of_row = np.repeat(group_of_document, rows.lengths)
    for group in dict.fromkeys(group_of_document[rows.order].tolist()):
        taken = group_of_row == group
        documents = np.unique(trace.document[taken]).astype(np.int64)
        yield replace(
            run,
            trace=trace.subset(documents),
            decisions=run.decisions.at_rows(taken),
            steps=np.unique(run.steps[taken], return_inverse=True)[1].astype(np.int64),
        )


def _sums(run: PolicyRun, strategy: KeyValue, at: PriceAt) -> tuple[float, ...]:
    """Tokens, tokens that agree, layers executed, the policy's cost and the full model's, in sum."""
    trace, usage = run.trace, strategy.charge(run)
    columns = np.searchsorted(trace.exits, _outputs(run, strategy))
    return (
        float(trace.token_count),
        float(trace.agreement[np.arange(trace.token_count), columns].sum()),
        float(executed_layers(usage, trace.shape)),
        _total(usage, at),
        _total(count_plain(run.steps, trace.layers), at),
    )


def _outputs(run: PolicyRun, strategy: KeyValue) -> NDArray[np.int64]:
    """The exit that each token's output is of: int64 [tokens]."""
    return np.full_like(run.decisions.exits, run.trace.layers) if strategy.lossless else run.decisions.exits


def _total(usage: Usage, at: PriceAt) -> float:
    return sum(count * PARTS[item.part](at, item) for item, count in usage.items() if count)
