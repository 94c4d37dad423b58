"""The verdict at a quality floor: chosen on one half of the documents, judged on the other."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.costs.machine import Machine
from offramp.costs.token import TokenCosts
from offramp.errors import InputError
from offramp.policies.charging import exit_costs, prices_of, walk_costs
from offramp.policies.policy import ExitPolicy
from offramp.policies.walk import walk
from offramp.scoring.bootstrap import DOCUMENTS_NEEDED, document_bootstrap
from offramp.scoring.documents import document_rows
from offramp.scoring.estimate import Estimate
from offramp.tracing.trace import Trace
from offramp.tuning import bounds
from offramp.tuning.pricing import BYTES, pricing_of
from offramp.tuning.results import Decision, Verdict
from offramp.tuning.search import Candidate, fastest_policies
from offramp.tuning.splits import heads_documents

DRAWS = 2000

WORTH = 0.05
"""The gain in speed from which on early exit is worth its trouble."""


def judge(
    trace: Trace,
    floors: tuple[float, ...] = (0.99, 0.95, 0.90),
    worth: float = WORTH,
    delta: float = 0.1,
    seed: int = 0,
    machine: Machine | None = None,
) -> tuple[Verdict, ...]:
    """Whether early exit pays at each floor on agreement, at batch 1: seconds on a machine, else bytes moved.

    The policy is searched on one half of the documents (split by `seed`) and judged on the other, with 95 %
    bootstrap intervals over documents. "pays": the net speedup's lower limit exceeds 1 + worth and the
    interval of agreement does not lie wholly below the floor; "does not pay": the upper limit stays below
    1 + worth, or nothing beat the full model; else, and for a policy with under 20 documents to judge it on,
    "too close to call".

    Raises InputError for a floor or delta outside (0, 1), a negative worth, or a trace without tokens.
    """
    for name, share in (*(("floor", floor) for floor in floors), ("delta", delta)):
        if not 0.0 < share < 1.0:
            raise InputError(f"a {name} of {share} is no share", fix="choose a number between 0 and 1")
    if not (math.isfinite(worth) and worth >= 0.0):
        raise InputError(
            f"a worth of {worth} is no gain", fix="choose 0 or more; 0.05 asks for 5 % more speed"
        )
    pricing, flops = pricing_of(trace, machine), prices_of(trace).flops
    fit, report = split_documents(trace, seed)
    unjudged = _why_unjudged(trace, len(fit))
    if unjudged is not None:
        return tuple(
            _undecided(floor, delta, unjudged, (len(fit), len(report)), pricing.machine) for floor in floors
        )
    chosen = fastest_policies(trace.subset(fit), pricing.costs, floors)
    held_out = trace.subset(report)
    verdicts = []
    for floor in floors:
        measured = _measure(held_out, chosen[floor].policy, pricing.costs, flops, seed)
        documents = (len(fit), len(report))
        verdicts.append(_verdict(floor, worth, delta, chosen[floor], measured, documents, pricing.machine))
    return tuple(verdicts)


def documents_needed(floor: float, delta: float) -> int:
    """Documents without a loss that a certificate of this floor at risk `delta` needs at least.

    The smallest n with floor^n <= delta: ceil(ln delta / ln floor), 230 for 0.99 at 0.1.
    """
    return bounds.documents_needed(1.0 - floor, delta)


def split_documents(trace: Trace, seed: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Two disjoint halves of the documents (places in `Trace.documents`), the same for the same ids and seed.

    The first is for choosing and the smaller one of an odd number; the second for judging. Documents that the
    trace's exit heads were fitted on are in neither.
    """
    used = heads_documents(trace)
    documents = document_rows(trace).index
    documents = documents[[trace.documents[place].id not in used for place in documents]]
    shuffled = np.random.default_rng(seed).permutation(documents)
    half = len(documents) // 2
    return np.sort(shuffled[:half]), np.sort(shuffled[half:])


@dataclass(frozen=True)
class HeldOut:
    """A policy's figures on documents that its choice never saw."""

    agreement: Estimate
    skip_ratio: Estimate
    speedup: Estimate
    speedup_flops: Estimate


def _measure(trace: Trace, policy: ExitPolicy, basis: TokenCosts, flops: TokenCosts, seed: int) -> HeldOut:
    """Agreement, skip ratio and both speedups, as ratios of sums over documents."""
    rows = document_rows(trace)
    walked = walk(policy, trace)
    exits = walked.exits
    agrees = trace.agreement[np.arange(trace.token_count), np.searchsorted(trace.exits, exits)]
    bootstrap = document_bootstrap(rows.count, draws=DRAWS, seed=seed)

    def mean(values: NDArray[np.float64] | NDArray[np.bool_]) -> NDArray[np.float64]:
        return bootstrap.means(rows.sums(values), rows.tokens)

    def speedup(costs: TokenCosts) -> Estimate:
        # The plain cost takes the same way through the sums, so that the full model's speedup is exactly 1.
        plain = np.full(trace.token_count, exit_costs(costs, {})[-1])
        return bootstrap.estimate(mean(plain) / mean(walk_costs(costs, walked)))

    return HeldOut(
        agreement=bootstrap.estimate(mean(agrees)),
        skip_ratio=bootstrap.estimate(mean(1.0 - exits / trace.layers)),
        speedup=speedup(basis),
        speedup_flops=speedup(flops),
    )


def _verdict(
    floor: float,
    worth: float,
    delta: float,
    chosen: Candidate,
    measured: HeldOut,
    documents: tuple[int, int],
    basis: str,
) -> Verdict:
    decision, reason = _decide(floor, worth, chosen, measured, documents, basis)
    return Verdict(
        floor=floor,
        decision=decision,
        reason=reason,
        policy=str(chosen.policy),
        agreement=measured.agreement,
        skip_ratio=measured.skip_ratio,
        net_speedup=measured.speedup,
        net_speedup_flops=measured.speedup_flops,
        fit_agreement=chosen.agreement,
        fit_documents=documents[0],
        report_documents=documents[1],
        documents_needed=documents_needed(floor, delta),
        floor_held=_value(measured.agreement) >= floor,
        basis=basis,
    )


def _decide(
    floor: float,
    worth: float,
    chosen: Candidate,
    measured: HeldOut,
    documents: tuple[int, int],
    basis: str,
) -> tuple[Decision, str]:
    """The decision and, in a few sentences, why."""
    if str(chosen.policy) == "never":
        few = f" So few documents say little: {DOCUMENTS_NEEDED} are needed for an interval."
        return "does not pay", (
            f"On {documents[0]} documents, no traced exit and no threshold that keeps {_percent(floor)} "
            f"agreement {_better(basis)} once every probe is charged."
        ) + (few if documents[1] < DOCUMENTS_NEEDED else "")
    speedup, agreement = measured.speedup, measured.agreement
    quality = _quality(floor, agreement)
    unit = "in bytes moved" if basis == BYTES else f"in seconds on {basis}"
    gain = f"Predicted net speedup, {unit}: {_value(speedup):.3f} on {documents[1]} unseen documents"
    if speedup.low is None or speedup.high is None or agreement.high is None:
        return "too close to call", (
            f"{gain}; fewer than {DOCUMENTS_NEEDED} allow no interval, so chance is not ruled out. {quality}"
        )
    gain += f" (95 % interval {speedup.low:.3f} to {speedup.high:.3f}; worth it above {1 + worth:.2f})."
    if speedup.high < 1.0 + worth:
        return "does not pay", f"{gain} {quality}"
    if speedup.low <= 1.0 + worth:
        return "too close to call", f"{gain} {quality}"
    # Speed bought with more disagreement than allowed is not what was asked for.
    if agreement.high < floor:
        return "too close to call", f"{gain} Fast enough, but the floor was missed. {quality}"
    return "pays", f"{gain} {quality}"


def _better(basis: str) -> str:
    """How a policy would have beaten the full model."""
    return (
        "moves fewer bytes than the full model"
        if basis == BYTES
        else f"is faster than the full model on {basis}"
    )


def _quality(floor: float, agreement: Estimate) -> str:
    """Whether the floor held on the unseen documents, in words."""
    value = _value(agreement)
    said = f"Agreement there is {_percent(value)}"
    if agreement.low is not None and agreement.high is not None:
        said += f" (95 % interval {_percent(agreement.low)} to {_percent(agreement.high)})"
    if value >= floor:
        return f"{said}, which holds the floor of {_percent(floor)}."
    allowed = agreement.high is not None and agreement.high >= floor
    doubt = "; the interval still allows it" if allowed else ""
    return f"{said}, which misses the floor of {_percent(floor)}{doubt}."


def _percent(share: float) -> str:
    """A share in percent, rounded down, so that 98.999 % never reads as a floor of 99 % reached."""
    return f"{math.floor(share * 1e4 + 1e-6) / 100:g} %"


def _value(estimate: Estimate) -> float:
    """The value of a figure that is always defined here: the held-out half has tokens."""
    return math.nan if estimate.value is None else estimate.value


def _why_unjudged(trace: Trace, fit_documents: int) -> str | None:
    """Why no policy can be chosen and judged on this trace, None if one can."""
    if not fit_documents:
        return "one document cannot both choose a policy and judge it; trace at least 40"
    if len(trace.exits) == 1 and trace.layers > 1:
        return "no exit before the last was traced, so no policy could be replayed; trace more exits"
    return None


def _undecided(floor: float, delta: float, why: str, documents: tuple[int, int], basis: str) -> Verdict:
    """The answer for a trace on which nothing can be judged."""
    undefined = Estimate(None, undefined=why)
    return Verdict(
        floor=floor,
        decision="too close to call",
        reason=f"Nothing was judged: {why}.",
        policy="never",
        agreement=undefined,
        skip_ratio=undefined,
        net_speedup=undefined,
        net_speedup_flops=undefined,
        fit_agreement=math.nan,
        fit_documents=documents[0],
        report_documents=documents[1],
        documents_needed=documents_needed(floor, delta),
        floor_held=False,
        basis=basis,
    )
