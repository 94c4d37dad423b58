"""Replaying one policy on a trace: where each token would leave, what that saves and loses; intervals."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from offramp.costs.machine import Machine
from offramp.defaults import DRAFT_LENGTH, DRAWS, SEED
from offramp.display import ShownAsHtml
from offramp.kit.arguments import checked
from offramp.kit.numbers import Count, Whole
from offramp.kit.typed import NumberOrNan
from offramp.policies.binding import TunedOn, seen_notes
from offramp.policies.charge import Charge, Units, prices_for, run_of
from offramp.policies.cost_breakdown import CostBreakdown, Gain, PriceAt, Usage, price_of
from offramp.policies.decisions import tokens_by_exit
from offramp.policies.figures import PolicyFigures, PositiveOf, ShareOf, SkippedOf
from offramp.policies.grammar import parse_policy_for, tuned_on
from offramp.policies.kv import maps_charged
from offramp.policies.names import BatchingName, BatchOf, StrategyName
from offramp.policies.policy import ExitPolicy
from offramp.policies.prices import (
    derived_notes,
    fitted_sizes,
    lookup_notes,
    machine_for,
    price_notes,
    prices_at,
    probes_made,
)
from offramp.policies.whole_request import request_notes
from offramp.scoring.documents import fact_of
from offramp.scoring.estimate import Draws, Estimate
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
    agreement: ShareOf[float]
    skip_ratio: SkippedOf[float]
    net_speedup: PositiveOf[float]
    reference_agreement: ShareOf[float] | None = None
    predicted_speedup_flops: PositiveOf[float]
    speedup_without_probes: PositiveOf[float]
    nll_increase: NumberOrNan
    kl: NumberOrNan
    basis: str
    seconds_per_token: PositiveOf[float] | None
    plain_seconds_per_token: PositiveOf[float] | None
    batch: Count
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
    machine: prices in seconds too: a machine, or the name or TOML file of one ("local", "h100"); bytes and
    FLOPs are counted at the trace's mean position. kv: "propagate", "mapped", "recompute", "speculate" or
    "monotone" (see `offramp.policies.kv`); the K,V maps of "mapped" are those of the trace's exit heads.
    batch: sequences decoded together, "lockstep" or "rebatch" (see `offramp.policies.steps`), grouped at
    random by `seed`. position: at which seconds are charged, by default the trace's mean. draft_length:
    tokens drafted before a verification, for "speculate".

    Raises PolicyError if the policy does not fit the trace, the strategy or the batch; InputError for a trace
    without tokens, or a machine that is unknown or cannot price it.

    >>> offramp.replay(trace, "static:exit=2").skip_ratio
    0.5
    """
    source = policy
    if isinstance(policy, str):
        policy = parse_policy_for(policy, trace)
    given, machine = machine, None if machine is None else machine_for(trace, machine)
    in_flops = prices_at(trace, "flops", maps_charged(trace, kv))
    run = run_of(trace, policy, batch=batch, batching=batching, draft_length=draft_length, seed=seed)
    at = prices_for(trace, machine, kv, batch=batch, position=position)
    trace, decisions, charge = run.trace, run.decisions, Charge.of(run, kv)
    breakdown, unprobed = charge.breakdown(at), charge.breakdown(at, checks_free=True)
    speedup_in_flops = charge.breakdown(in_flops).speedup
    return ReplayResult(
        policy=policy,
        exits=decisions.exits,
        probes=probes_made(decisions),
        skip_ratio=charge.skip_ratio,
        net_speedup=breakdown.speedup,
        predicted_speedup_flops=speedup_in_flops,
        speedup_without_probes=unprobed.speedup,
        probe_share=1.0 - unprobed.total / breakdown.total,
        **_quality(trace, charge.outputs),
        basis="bytes moved" if machine is None else machine.name,
        seconds_per_token=breakdown.per_token if machine else None,
        plain_seconds_per_token=breakdown.plain_per_token if machine else None,
        kv=kv,
        batch=batch,
        batching=batching,
        reachable=run.policy.reachable,
        breakdown=breakdown,
        gain=breakdown.gain,
        notes=(
            *request_notes(trace, speedup_in_flops),
            *lookup_notes(given, machine),
            *price_notes(machine, trace, breakdown.batches),
            *derived_notes(machine, breakdown, lens=fitted_sizes(trace).lens),
            *seen_notes(trace, tuned_on(source) if isinstance(source, str) else TunedOn()),
        ),
    )


def _quality(trace: Trace, exits: NDArray[np.int64]) -> dict[str, Any]:
    """Quality of the outputs at some exits, int64 [tokens]."""
    columns = np.searchsorted(trace.exits, exits)
    rows = np.arange(trace.token_count)
    reference = trace.reference_agreement
    nll, divergence = fact_of(trace, "nll"), fact_of(trace, "kl_to_final")
    increase = np.mean(nll[rows, columns], dtype=np.float64) - np.mean(nll[:, -1], dtype=np.float64)
    return {
        "agreement": float(np.mean(trace.agreement[rows, columns])),
        "reference_agreement": None if reference is None else float(np.mean(reference[rows, columns])),
        "nll_increase": float(increase),
        "kl": float(np.mean(divergence[rows, columns], dtype=np.float64)),
    }


@dataclass(frozen=True)
class ReplayIntervals:
    """Figures of a replay with 95 % intervals. net_speedup: its `predicted_speedup`."""

    agreement: ShareOf[Estimate]
    skip_ratio: SkippedOf[Estimate]
    net_speedup: PositiveOf[Estimate]


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
    if isinstance(policy, str):
        policy = parse_policy_for(policy, trace)
    machine = None if machine is None else machine_for(trace, machine)
    at = prices_for(trace, machine, kv, batch=batch)
    run = run_of(trace, policy, batch=batch, batching=batching, draft_length=draft_length, seed=seed)
    units = Units.of(run)
    sums = np.array([_sums(Charge.of(unit, kv), at) for unit in units.canonical()])
    tokens, agreeing, executed, cost, plain = sums.T
    bootstrap = units.bootstrap(draws, seed)
    skipped = 1.0 - bootstrap.means(executed / run.trace.layers, tokens)
    return ReplayIntervals(
        agreement=bootstrap.estimate(bootstrap.means(agreeing, tokens)),
        skip_ratio=bootstrap.estimate(skipped),
        net_speedup=bootstrap.estimate(bootstrap.totals(plain) / bootstrap.totals(cost)),
    )


def _sums(charge: Charge, at: PriceAt) -> tuple[float, ...]:
    """Tokens, tokens that agree, layers executed, the policy's cost and the full model's, in sum."""
    trace = charge.run.trace
    columns = np.searchsorted(trace.exits, charge.outputs)
    return (
        float(trace.token_count),
        float(trace.agreement[np.arange(trace.token_count), columns].sum()),
        float(charge.layers),
        _total(charge.usage, at),
        _total(charge.plain, at),
    )


def _total(usage: Usage, at: PriceAt) -> float:
    return sum(count * price_of(item, at) for item, count in usage.items() if count)
