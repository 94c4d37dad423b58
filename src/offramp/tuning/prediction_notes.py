"""What to bear in mind beside a prediction, in plain words."""

from __future__ import annotations

import math
from collections.abc import Iterator

from offramp.scoring.estimate import DOCUMENTS_NEEDED
from offramp.tracing.trace import Trace
from offramp.tuning.bounds import documents_needed
from offramp.tuning.floor import Floor, FloorAnswer
from offramp.tuning.pricing import BYTES, Pricing
from offramp.tuning.shift import ShiftRow
from offramp.tuning.splits import traced
from offramp.tuning.tuned import Tuned

APPROXIMATE = {"propagate": "propagated", "mapped": "mapped"}
"""KV strategies that change what later tokens see, and what they do to K and V."""

NOTABLE_SHIFT = 0.02
"""A change of an exit's agreement that is pointed out."""


def prediction_notes(
    tuned: Tuned | None,
    trace: Trace,
    pricing: Pricing,
    kv: str,
    left_out: int,
    answer: FloorAnswer | None,
    delta: float,
    shift: tuple[ShiftRow, ...],
    reachable: bool,
) -> tuple[str, ...]:
    """All notes. trace: the documents judged; left_out: how many were not, having been used before."""
    documents, batch = len(traced(trace)), pricing.batch
    units = documents // batch
    noun = "documents" if batch == 1 else f"groups of {batch} documents"
    notes = []
    if not reachable:
        notes.append(
            "An oracle, at 100 % agreement: it looks at what no decoder knows before it decides; nothing can "
            "reach it."
        )
    if left_out:
        notes.append(
            f"{left_out} documents were left out: exit heads were fitted or the policy was tuned on them, or "
            "on text that they share."
        )
    if batch > 1:
        notes.append(
            "In lockstep all tokens of a step leave at the deepest of their own exits: speed, quality and "
            f"skip are of the exits taken, intervals over {noun}."
        )
    if (found := math.ceil(documents / batch)) < DOCUMENTS_NEEDED:
        notes.append(f"{found} {noun} give no interval; {DOCUMENTS_NEEDED} are needed.")
    if kv in APPROXIMATE:
        notes.append(
            f"Replayed with the full model's states: with {APPROXIMATE[kv]} K and V, later tokens see others "
            "in decoding."
        )
    if tuned is None:
        notes.append("The policy was not tuned by offramp: it has no floor to hold.")
        return tuple(notes)
    if not _texts_known(tuned, trace):
        notes.append(
            "The policy's documents are told from these by their ids alone: the file of one of them is of an "
            "offramp that kept no texts."
        )
    notes += _origin(tuned, trace, pricing, kv)
    if answer == "not decided":
        notes.append(_undecided(tuned.floor, units, noun, delta))
    return (*notes, *_largest_shift(shift))


def _texts_known(tuned: Tuned, trace: Trace) -> bool:
    """Whether text that the policy's documents share with the trace's would have been found."""
    kept = any(tuned.document_texts.values()) or not any(tuned.document_digests.values())
    return kept and all(trace.documents[place].text is not None for place in traced(trace).tolist())


def _origin(tuned: Tuned, trace: Trace, pricing: Pricing, kv: str) -> Iterator[str]:
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
    if pricing.machine == BYTES and tuned.machine != BYTES:
        yield f"Counted in bytes moved; the policy was tuned for {tuned.machine}. Name a machine for seconds."
    elif pricing.machine != tuned.machine:
        yield (
            f"Tuned for {tuned.machine}, predicted for {pricing.machine}: another policy may be faster there."
        )
    if pricing.batch != tuned.batch:
        yield f"Tuned at batch {tuned.batch}, predicted at batch {pricing.batch}."
    if kv != tuned.kv:
        yield f"Tuned with K and V by {tuned.kv}, predicted with {kv}."
    if tuned.policy_text == "never":
        yield "Tuning chose the full model: there is nothing to gain or to lose."


def _undecided(floor: Floor, units: int, noun: str, delta: float) -> str:
    needed = documents_needed(floor.risk, delta / 2.0)
    said = f"{units} {noun} do not decide whether {floor} holds"
    if units < needed:
        return f"{said}: at least {needed} without a loss are needed to confirm it at this confidence."
    return f"{said} at this confidence; more documents may."


def _largest_shift(shift: tuple[ShiftRow, ...]) -> Iterator[str]:
    """The check whose agreement changed most, if it changed notably."""
    if not shift:
        return
    row = max(shift, key=lambda row: abs(row.other_agreement - row.tuned_agreement))
    change = row.other_agreement - row.tuned_agreement
    if abs(change) >= NOTABLE_SHIFT:
        yield (
            f"The texts differ: exit {row.exit} agrees with the full model in "
            f"{100 * row.other_agreement:.1f} % of the tokens here, in {100 * row.tuned_agreement:.1f} % on "
            "the documents it was tuned on."
        )
