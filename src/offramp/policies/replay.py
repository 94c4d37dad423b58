"""Replaying one policy on a trace: where each token would leave, and what that would save and lose."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.costs.machine import Machine
from offramp.costs.probes import MapRanks
from offramp.costs.token import Prices, TokenCosts
from offramp.errors import InputError, PolicyError
from offramp.policies.batching import count_plain, find_batching, group_into_steps
from offramp.policies.bill import PriceAt, make_bill
from offramp.policies.binding import TunedOn, seen_notes
from offramp.policies.charging import (
    counted_at,
    derived_notes,
    has_lens,
    lookup_notes,
    machine_for,
    mean_position,
    probes_made,
    seconds_at,
    untimed_notes,
)
from offramp.policies.gain import split_gain
from offramp.policies.grammar import parse_policy_for, tuned_on
from offramp.policies.map_ranks import maps_charged
from offramp.policies.policy import ExitPolicy
from offramp.policies.repair import STRATEGIES, KeyValueStrategy, Run, executed_layers, find_strategy
from offramp.policies.results import ReplayResult
from offramp.policies.short_list import seen_by
from offramp.policies.speculation import read_draft_length
from offramp.policies.walk import task_of, walk
from offramp.scoring.documents import fact_of
from offramp.tracing.trace import Trace


def replay(
    trace: Trace,
    policy: ExitPolicy | str,
    costs: Prices | None = None,
    *,
    machine: Machine | str | None = None,
    kv: str = "propagate",
    batch: int = 1,
    batching: str = "lockstep",
    draft_length: int = 4,
    seed: int = 0,
    position: float | None = None,
) -> ReplayResult:
    """Where each token of the trace leaves under the policy, with agreement and every cost charged.

    policy: a policy, or the text of one (see `parse_policy`), tuned on this model if it names a tuner's file.
    costs: price lists of a step of one row in bytes and FLOPs; by default those of the trace's model at its
    mean position. machine: prices in seconds too: a machine, or the name or TOML file of one ("local",
    "h100"). kv: "propagate", "mapped", "recompute", "speculate" or "monotone" (see
    `offramp.policies.repair`); the K,V maps of "mapped" are those of the trace's exit heads. batch:
    sequences decoded together, "lockstep" or "rebatch" (see `offramp.policies.batching`), grouped at random
    by `seed`. position: at which seconds are charged, by default the trace's mean. draft_length: tokens
    drafted before a verification, for "speculate".

    Raises PolicyError if the policy does not fit the trace, the strategy or the batch; InputError for a trace
    without tokens, or a machine that is unknown or cannot price it.
    """
    strategy = check_options(kv, batch, batching, draft_length)
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
    trace, own, walked, steps = run.trace, run.policy, run.walk, run.steps
    usage, plain = strategy.count(run), count_plain(steps, trace.layers)
    # The same exits without a single check: each output then takes a head product of its own.
    unchecked = strategy.count(dataclasses.replace(run, walk=walked.unchecked()))
    seconds = None if machine is None else seconds_at(trace, machine, position, batch=batch, maps=maps)
    at = seconds or in_bytes
    bill = make_bill(usage, plain, at, trace.token_count)
    unprobed = make_bill(unchecked, plain, at, trace.token_count)
    quality = _quality(trace, np.full_like(walked.exits, trace.layers) if strategy.exact else walked.exits)
    return ReplayResult(
        policy=str(policy),
        exits=walked.exits,
        probes=probes_made(walked),
        skip_ratio=1.0 - executed_layers(usage, trace.shape) / (trace.token_count * trace.layers),
        predicted_speedup=bill.speedup,
        predicted_speedup_flops=make_bill(usage, plain, in_flops, trace.token_count).speedup,
        speedup_without_probes=unprobed.speedup,
        probe_share=1.0 - unprobed.total / bill.total,
        agreement=quality.agreement,
        reference_agreement=quality.reference_agreement,
        nll_increase=quality.nll_increase,
        kl=quality.kl,
        basis="bytes moved" if machine is None else machine.name,
        seconds_per_token=bill.total / bill.tokens if seconds else None,
        plain_seconds_per_token=bill.plain / bill.tokens if seconds else None,
        kv=kv,
        batch=batch,
        batching=batching,
        reachable=own.reachable,
        bill=bill,
        gain=split_gain(bill),
        notes=(
            *lookup_notes(given, machine),
            *untimed_notes(machine, bill.batches),
            *derived_notes(machine, bill, lens=has_lens(trace)),
            *seen_notes(trace, tuned_on(source) if isinstance(source, str) else TunedOn()),
        ),
    )


def run_of(
    trace: Trace, policy: ExitPolicy, *, batch: int, batching: str, draft_length: int, seed: int
) -> Run:
    """A policy walked through a trace, its tokens grouped into steps: ready to be charged.

    Raises PolicyError if the policy does not fit the trace or the batch.
    """
    own = policy.for_task(task_of(trace))
    trace = seen_by(own, trace)
    steps = group_into_steps(trace.document, batch, seed)
    return Run(trace, own, find_batching(batching)(walk(own, trace), steps), steps, draft_length)


def check_options(kv: str, batch: int, batching: str, draft_length: int) -> KeyValueStrategy:
    """The strategy of that name. Raises PolicyError for options that are unknown or do not go together."""
    strategy = find_strategy(kv)
    find_batching(batching)
    read_draft_length(draft_length, adapts=False)
    if batch < 1:
        raise PolicyError(
            f"a batch of {batch} is not possible", where="batch= (--batch)", fix="give 1 or more"
        )
    if batch > 1 and not strategy.batches:
        able = ", ".join(name for name, strategy in STRATEGIES.items() if strategy.batches)
        raise PolicyError(
            f"{kv!r} is charged for one sequence at a time, not for a batch of {batch}",
            fix=f"give batch 1, or one of the strategies {able}",
        )
    return strategy


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
