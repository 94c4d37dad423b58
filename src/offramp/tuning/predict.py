"""What a policy would do on another workload or another machine, and whether its floor would still hold."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from offramp.costs.machine import Machine
from offramp.defaults import BYTES, DELTA, SEED
from offramp.errors import InputError
from offramp.kit.arguments import checked
from offramp.kit.numbers import Count, Whole
from offramp.policies.binding import base_of, check_same_maps, require_base
from offramp.policies.charge import Units, run_of
from offramp.policies.decisions import task_of
from offramp.policies.figures import PLAIN_DECODING, shared_fields
from offramp.policies.grammar import parse_policy
from offramp.policies.kv import STRATEGIES, maps_charged
from offramp.policies.names import StrategyName
from offramp.policies.policy import ExitPolicy
from offramp.policies.prices import lookup_notes, machine_for, price_notes
from offramp.policies.whole_request import WholeRequest, of_request, request_of
from offramp.scoring.documents import Lengths, lengths_of
from offramp.scoring.estimate import DOCUMENTS_NEEDED, Estimate
from offramp.tracing.trace import Trace, heads_documents
from offramp.tuning.bounds import documents_needed, two_sided_limits
from offramp.tuning.certificate import policy_losses
from offramp.tuning.floor import Floor, FloorAnswer
from offramp.tuning.held_out import HeldOut, group_losses, measure, measure_in_lockstep
from offramp.tuning.pricing import Pricing, pricing_of
from offramp.tuning.splits import require_disjoint, seen_documents, traced
from offramp.tuning.tuned import ShiftRow, Tuned, is_tuned_file, read_tuned, shift_rows

MEASURED_SHARE = Estimate(0.81, 0.36, 1.25)
"""Of what policies that ask a signal were predicted to save, the share that was measured afterwards: the mean
of all pairs on smollm2, and within what a further pair lies in 19 of 20 cases. `make results` computes it
again (docs/results, predictions)."""

NOTABLE_SHIFT = 0.02
"""A change of an exit's agreement that is pointed out."""


def prediction_notes(found: Prediction, tuned: Tuned | None, trace: Trace, left_out: int) -> Iterator[str]:
    """All notes. trace: the documents judged; left_out: how many were not, having been used before."""
    units = found.documents // found.batch
    noun = "documents" if found.batch == 1 else f"groups of {found.batch} documents"
    if not found.reachable:
        yield (
            "An oracle, at 100 % agreement: it looks at what no decoder knows before it decides; nothing can "
            "reach it."
        )
    if left_out:
        yield (
            f"{left_out} documents were left out: exit heads were fitted or the policy was tuned on them, or "
            "on text that they share."
        )
    if found.batch > 1:
        yield (
            "In lockstep all tokens of a step leave at the deepest of their own exits: speed, quality and "
            f"skip are of the exits taken, intervals over {noun}."
        )
    if (drawn := math.ceil(found.documents / found.batch)) < DOCUMENTS_NEEDED:
        yield f"{drawn} {noun} give no interval; {DOCUMENTS_NEEDED} are needed."
    if not STRATEGIES[found.kv].exact:
        yield (
            f"Replayed with the full model's states: with K and V by {found.kv}, later tokens see others in "
            "decoding."
        )
    if tuned is None:
        yield "The policy was not tuned by offramp: it has no floor to hold."
        return
    if not _texts_known(tuned, trace):
        yield (
            "The policy's documents are told from these by their ids alone: the file of one of them is of an "
            "offramp that kept no texts."
        )
    yield from _origin(found, tuned, trace)
    if found.floor_answer == "not decided":
        needed = documents_needed(tuned.floor.risk, found.delta / 2.0)
        said = f"{units} {noun} do not decide whether {tuned.floor} holds"
        if units < needed:
            yield f"{said}: at least {needed} without a loss are needed to confirm it at this confidence."
        else:
            yield f"{said} at this confidence; more documents may."
    row = max(found.shift, key=lambda row: row.change, default=None)
    if row is not None and row.change >= NOTABLE_SHIFT:
        yield (
            f"The texts differ: exit {row.other.exit} agrees with the full model in "
            f"{100 * row.other.agreement:.1f} % of the tokens here, in {100 * row.tuned.agreement:.1f} % on "
            "the documents it was tuned on."
        )


def _texts_known(tuned: Tuned, trace: Trace) -> bool:
    """Whether text that the policy's documents share with the trace's would have been found."""
    kept = any(tuned.document_texts.values()) or not any(tuned.document_digests.values())
    return kept and all(trace.documents[place].text is not None for place in traced(trace).tolist())


def _origin(found: Prediction, tuned: Tuned, trace: Trace) -> Iterator[str]:
    """Where this differs from what the policy was tuned for, and where it does not."""
    request = trace.request
    workload = request.get("workload", {})
    fingerprint = workload.get("fingerprint")
    if fingerprint is not None and fingerprint == tuned.workload.get("fingerprint"):
        yield (
            f"The same workload as it was tuned on, {workload.get('name')}: other documents of it, not "
            "another kind of text."
        )
    if request.get("dtype") != tuned.model.get("dtype"):
        yield (
            f"Traced in {request.get('dtype')}, tuned in {tuned.model.get('dtype')}: signals and agreement "
            "may differ by that alone."
        )
    if found.machine == BYTES and tuned.machine != BYTES:
        yield f"Counted in bytes moved; the policy was tuned for {tuned.machine}. Name a machine for seconds."
    elif found.machine != tuned.machine:
        yield (
            f"Tuned for {tuned.machine}, predicted for {found.machine}: another policy may be faster there."
        )
    if found.batch != tuned.batch:
        yield f"Tuned at batch {tuned.batch}, predicted at batch {found.batch}."
    if found.kv != tuned.kv:
        yield f"Tuned with K and V by {tuned.kv}, predicted with {found.kv}."
    if tuned.plain:
        yield "Tuning chose the full model: there is nothing to gain or to lose."


# Only to measure a policy that has no floor of its own; nothing of it is shown.
ANY_FLOOR = Floor("agreement", 0.99)


@dataclass(frozen=True, kw_only=True)
class Prediction(HeldOut):
    """What a policy would do on another workload or machine.

    floor_answer: "holds" if the lower confidence limit of the quality reaches the floor, "broken" if the
    upper one misses it, else "not decided"; None for a policy without a floor. risk_low, risk_high: two-sided
    confidence limits of the mean loss at delta (betting bound), None without a floor. batching: "lockstep",
    of all figures, None at batch 1. quality: agreement, for a policy without a floor.
    document_tokens: fewest, median and most tokens of a document.
    """

    IF_ANY: ClassVar[tuple[str, ...]] = ("request", "request_speedup")

    workload: str
    machine: str
    batch: int
    floor: Floor | None
    floor_answer: FloorAnswer | None
    risk_low: float | None
    risk_high: float | None
    delta: float
    documents: int
    batching: str | None
    shift: tuple[ShiftRow, ...]
    notes: tuple[str, ...]
    document_tokens: Lengths | None = None
    request: WholeRequest | None = None
    """Of a model with an encoder, what decoding, which the figures are of, is of a request."""
    request_speedup: Estimate | None = None
    """That of whole requests, beside the net speedup of their tokens; None without an encoder."""
    as_measured: Estimate | None = None
    """Net speedup as such predictions came out when they were timed (`expected`); None where none were."""


@checked
def predict(
    policy: Tuned | ExitPolicy | str,
    trace: Trace,
    *,
    hardware: Machine | str | None = None,
    batch: Count | None = None,
    kv: StrategyName | None = None,
    seed: Whole = SEED,
    unseen: bool = False,
) -> Prediction:
    """Speed, quality, and whether the tuned floor would hold, on another trace of the same model.

    policy: tuned, or any policy or its text, which has no floor and nothing to compare the trace with; a text
    may name the file of either. hardware: a machine, or its name or TOML file; None counts bytes moved (then
    the "seconds" of the result are bytes). unseen: leave out the trace's documents that tuning used, where it
    would be an error otherwise; documents that exit heads were fitted on are always left out.

    batch, kv: by default what the policy was tuned with, given a machine; else 1 and "propagate". A batch
    runs in lockstep, in the groups of `offramp.policies.replay` (seed): all figures are of the exits taken,
    and groups are the unit of intervals and limits, as their documents depend on each other.

    Intervals are bootstrapped over documents (seed). The mean loss of all such documents lies between
    `risk_low` and `risk_high` with probability 1 - delta (two one-sided betting bounds at delta / 2 each,
    Waudby-Smith and Ramdas, arXiv 2010.09686, section 4): the floor "holds" if the upper one keeps it, is
    "broken" if the lower one exceeds it.

    Raises InputError for a trace without a usable document, for documents that the policy was tuned on, a
    negative seed, or what the machine cannot price; PolicyError for a trace of another model or read through
    other exit heads, for fewer documents than a batch has rows, or if the policy does not fit the trace.
    """
    named = named_policy(policy)
    tuned = named if isinstance(named, Tuned) else None
    decides = named.policy if isinstance(named, Tuned) else named
    if tuned is not None:
        require_base(tuned.model, decides, trace)
    # The full model keeps all of its own choices, whatever was chosen on these documents.
    certain = decides == PLAIN_DECODING and (tuned is None or tuned.floor.kind == "agreement")
    if tuned is not None and not unseen and not certain:
        require_disjoint(trace, tuned.tuned_on)
    judged, left_out = (trace, 0) if certain else _usable(trace, tuned)
    machine = None if hardware is None else machine_for(trace, hardware)
    # Bytes are counted one way only.
    as_tuned = None if machine is None else tuned
    batch = (as_tuned.batch if as_tuned else 1) if batch is None else batch
    kv = (as_tuned.kv if as_tuned else "propagate") if kv is None else kv
    pricing = pricing_of(judged, machine, batch, kv)
    _require_admitted(tuned, decides, judged, kv)
    floor = None if tuned is None else tuned.floor
    held, losses = _judged(judged, decides, pricing, machine, floor or ANY_FLOOR, seed, kv)
    delta = DELTA if tuned is None else tuned.certificate.delta or DELTA
    low, high = (None, None) if floor is None else two_sided_limits(losses, delta)
    figures = held if floor is not None else replace(held, quality=held.agreement)
    request = request_of(judged, machine, pricing.batch)
    prediction = Prediction(
        **shared_fields(figures, HeldOut),
        workload=task_of(trace) or "unknown",
        machine=pricing.machine,
        batch=pricing.batch,
        floor=floor,
        floor_answer=_floor_answer(floor, low, high),
        risk_low=low,
        risk_high=high,
        delta=delta,
        documents=len(traced(judged)),
        batching="lockstep" if batch > 1 else None,
        shift=() if tuned is None else shift_rows(tuned.shift, judged, decides),
        notes=(),
        document_tokens=lengths_of(judged),
        as_measured=expected(held, pricing),
        request=request,
        request_speedup=None if request is None else of_request(request, held.net_speedup),
    )
    notes = (
        *prediction_notes(prediction, tuned, judged, left_out),
        *lookup_notes(hardware, machine),
        *price_notes(machine, judged, (batch,) if STRATEGIES[kv].batches else (batch, batch + 1)),
    )
    return replace(prediction, notes=notes)


def expected(held: HeldOut, pricing: Pricing) -> Estimate | None:
    """Speed over the full model that a stopwatch is expected to say, with the interval of one further policy.

    The saving 1 - 1 / net speedup, times `MEASURED_SHARE`. None without seconds, in batches, for what saves
    nothing, and for a policy that asks no signal: those were predicted to within 3 % of the change.
    """
    predicted = held.net_speedup.value
    probes = held.probe_share
    if pricing.machine == BYTES or pricing.batch > 1 or predicted is None or predicted <= 1.0 or not probes:
        return None
    saved = 1.0 - 1.0 / predicted
    value, low, high = (
        None if share is None or share * saved >= 1.0 else 1.0 / (1.0 - share * saved)
        for share in (MEASURED_SHARE.value, MEASURED_SHARE.low, MEASURED_SHARE.high)
    )
    if high is None:
        return Estimate(value, no_interval="no speed is too high for so large a saving")
    return Estimate(value, low, high)


def named_policy(policy: Tuned | ExitPolicy | str) -> Tuned | ExitPolicy:
    """What a text names: the tuned policy of a file that offramp tune wrote, or any other policy.

    Raises InputError for a file that cannot be read or was edited, PolicyError for a text that is no policy.
    """
    if not isinstance(policy, str):
        return policy
    if policy.endswith(".json") and is_tuned_file(Path(policy)):
        return read_tuned(policy)
    return parse_policy(policy)


def _require_admitted(tuned: Tuned | None, policy: ExitPolicy, trace: Trace, kv: str) -> None:
    """Refuse a policy that the strategy cannot work with, or other K,V maps than it was tuned with.

    Raises PolicyError.
    """
    maps = maps_charged(trace, kv)
    STRATEGIES[kv].admits(policy.for_task(task_of(trace)), trace.layers, maps)
    if maps and tuned is not None and tuned.kv == kv:
        check_same_maps(tuned.model.get("heads"), base_of(trace)["heads"], str(trace.folder or "the trace"))


def _usable(trace: Trace, tuned: Tuned | None) -> tuple[Trace, int]:
    """The trace's documents that neither heads were fitted on nor tuning used; how many were left out."""
    spoilt = set(heads_documents(trace))
    if tuned is not None:
        spoilt.update(*seen_documents(trace, tuned.tuned_on).values())
    places = traced(trace)
    kept = [int(place) for place in places if trace.documents[int(place)].id not in spoilt]
    if len(kept) == len(places):
        return trace, 0
    if not kept:
        raise InputError(
            f"all {len(places)} documents of the trace were used for fitting or tuning",
            where=str(trace.folder or "the trace"),
            fix="trace other documents",
        )
    return trace.subset(np.array(kept, dtype=np.int64)), len(places) - len(kept)


def _judged(
    trace: Trace,
    policy: ExitPolicy,
    pricing: Pricing,
    machine: Machine | None,
    floor: Floor,
    seed: int,
    kv: str,
) -> tuple[HeldOut, NDArray[np.float64]]:
    """A policy's figures, and the mean loss of each independent unit: a document, or a group of a batch."""
    if machine is None or pricing.batch == 1:
        held = measure(trace, policy, pricing, floor, seed, kv)
        return held, policy_losses(trace, policy, floor)
    units = Units.of(run_of(trace, policy, batch=pricing.batch, seed=seed))
    return measure_in_lockstep(units, policy, machine, floor, seed, kv), group_losses(units, floor)


def _floor_answer(floor: Floor | None, low: float | None, high: float | None) -> FloorAnswer | None:
    if floor is None or low is None or high is None:
        return None
    if high <= floor.risk:
        return "holds"
    return "broken" if low > floor.risk else "not decided"
