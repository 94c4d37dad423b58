"""The answer of tuning and its file, sealed, with what the texts look like to the policy's checks."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from offramp.errors import InputError, refused_as, shortened
from offramp.files import write_sealed_json
from offramp.heads.file import heads_path
from offramp.kit.numbers import Count, Number, Proportion, Whole
from offramp.kit.typed import InvalidRecordError, from_json
from offramp.kit.typed import to_json as record_json
from offramp.policies.binding import TunedOn
from offramp.policies.decisions import task_of
from offramp.policies.figures import NEVER, PLAIN_DECODING, PositiveOf, ShareOf, SkippedOf
from offramp.policies.grammar import TUNED, TUNED_SCHEMA_VERSION, read_policy_file, require_whole
from offramp.policies.kv import STRATEGIES
from offramp.policies.policy import ExitPolicy, columns_of
from offramp.policies.rules.short_list import seen_by
from offramp.policies.whole_request import WholeRequest
from offramp.scoring.documents import fact_of, require_numbers
from offramp.scoring.estimate import Estimate
from offramp.scoring.text_quality import TextQuality
from offramp.tracing.trace import Trace
from offramp.tuning.bounds import OUT_OF_TIME
from offramp.tuning.certificate import Candidate, Certificate
from offramp.tuning.floor import Floor
from offramp.tuning.held_out import HeldOut
from offramp.tuning.splits import fewest_documents
from offramp.workloads.shared_text import SketchText

HEADS_FILE = "heads_file"
"""In a tuned policy's provenance: where its exit heads lie, absolute once it is read."""

LAYERS = "layers"
"""In its provenance: of the model that it was tuned on."""


@dataclass(frozen=True)
class FrontPoint:
    """One candidate of the Pareto front on the search documents, from cautious to bold."""

    policy: ExitPolicy
    risk: ShareOf[float]
    """Mean loss over documents."""
    quality: Number
    """The same in the floor's own unit."""
    seconds_per_token: PositiveOf[float]
    """Predicted on the machine, as the speedup."""
    net_speedup: PositiveOf[float]
    skip_ratio: SkippedOf[float]


@dataclass(frozen=True)
class Shift:
    """How the tuning documents look to a policy at one of its checks, kept to compare other texts with."""

    exit: Count
    fact: str | None
    """The first measured one that the policy reads there."""
    quantiles: tuple[Number, ...]
    """Of that fact, at `QUANTILES`."""
    agreement: ShareOf[float]
    """Share of tokens on which this exit agrees with the full model."""
    calibration: Number | None
    """Mean of max_prob less that share."""


FloorStanding = Literal[
    "certified", "refuted", "nothing could pay", "nothing faster", "too few documents", "not settled"
]
"""How a floor stands after decoding. "refuted": what was tried did not keep it. "nothing could pay", "nothing
faster": by price, of what the search found. "too few documents": at hand. "not settled": for want of time, or
of documents that were allowed."""


@dataclass(frozen=True)
class Grounds:
    """What an executed answer rests on, beside its candidates."""

    standing: FloorStanding
    complete: bool
    """Whether nothing was cut short by the time that was given."""
    reach: PositiveOf[float] | None
    """Predicted speed, over the best decoder without exits, of the fastest that keeps the floor on the search
    documents, as rerun or in replay; None without any."""
    without: PositiveOf[float]
    """Cost of the best baseline that keeps the floor, over plain cost: 1 for plain."""
    worth: Number | None
    """The gain that candidates had to reach, None where the fastest was looked for."""
    at_hand: Whole
    """Documents to certify on, whether or not so many were allowed."""
    left_out: str = ""
    """Documents that gave no prompt, in words."""
    baseline: str = NEVER
    """The name of the best baseline."""
    baseline_kept: Proportion = 1.0
    """What it keeps: as rerun, or of the prompts that it was timed on."""


@dataclass(frozen=True, kw_only=True)
class Tuned(HeldOut):
    """The answer of the tuner: the fastest policy that passed, or the full model and why.

    Its policy is `Never` if nothing passed or nothing beats the full model. Its figures are on report
    documents that neither search nor certificate saw (None values if there are none): as rerun with an
    executed certificate, else replayed; of the exits taken in lockstep at a batch above 1, where bound and
    front are of each token alone.
    """

    IF_ANY: ClassVar[tuple[str, ...]] = ("request", "text_quality")

    floor: Floor
    answer: str
    """In plain sentences."""
    certificate: Certificate
    machine: str
    batch: Count
    front: tuple[FrontPoint, ...]
    shift: tuple[Shift, ...]
    documents: Mapping[str, Whole]
    """How many of each role: "heads", "search", "certify", "report"."""
    document_digests: Mapping[str, tuple[str, ...]]
    """SHA-256 of the ids and workload of the search and certify documents, by role."""
    model: Mapping[str, Any] = field(default_factory=dict)
    """What the policy is bound to, as `offramp.policies.binding.base_of` gives it."""
    workload: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    """The seed, offramp's version, the machine's whole profile (None without a machine) and the fingerprint
    of the trace."""
    executed_agreement: ShareOf[Estimate] | None = None
    """Share of the tokens it generates that are the full model's choice on the same prefix, of documents that
    did not choose the policy, mean over documents; None if nothing was decoded."""
    executed_reference_agreement: ShareOf[Estimate] | None = None
    """The same by the reference's choices, in its place at a floor on these."""
    candidates: tuple[Candidate, ...] = ()
    """What was to be certified, in the order of the tests, the lossless contender last."""
    document_texts: Mapping[str, tuple[SketchText, ...]] = field(default_factory=dict)
    """Sketches of the texts of search and certify documents (`offramp.workloads.shared_text`), by role."""
    grounds: Grounds | None = None
    """Of an executed answer; None of a replay bound, and of files that older versions wrote."""
    request: WholeRequest | None = None
    """Of a model with an encoder, what decoding, which the figures are of, is of a request."""
    text_quality: TextQuality | None = None
    """Of the policy's answers, or of what was tried last, where documents say what is to be written."""

    def __repr__(self) -> str:
        return f"Tuned({self.policy} at {self.floor}: {self.answer})"

    @property
    def documents_in_all(self) -> int:
        """Fewest traced documents of which so many are left to certify on as the floor takes."""
        return fewest_documents(self.certificate.documents_needed) + self.documents["heads"]

    @property
    def standing(self) -> FloorStanding | None:
        """How its floor stands after decoding; None where nothing was to be decoded."""
        if not self.certificate.executed:
            return None
        if self.grounds is not None:
            return self.grounds.standing
        return "certified" if self.certificate.holds else "not settled"

    @property
    def tested(self) -> tuple[Candidate, ...]:
        """The candidates that were decoded, in their order; drafts and the full model alone are none."""
        return tuple(
            candidate
            for candidate in self.candidates
            if candidate.documents and not candidate.lossless and candidate.policy != PLAIN_DECODING
        )

    @property
    def bolder_open(self) -> bool:
        """Whether a bolder candidate than the one that was certified is still to be tested."""
        several = [candidate for candidate in self.candidates if not candidate.lossless]
        cells = [(candidate.policy, candidate.kv) for candidate in several]
        chosen = (self.policy, self.kv)
        rest = several[cells.index(chosen) + 1 :] if chosen in cells else several
        return bool(rest) and (rest[0].passed is None or rest[0].outcome == OUT_OF_TIME)

    @property
    def faster_lossless(self) -> Candidate | None:
        """The drafts that lose nothing and take fewer seconds, predicted, than the policy does."""
        return faster_lossless(self.candidates, self.net_speedup)

    @property
    def heads_file(self) -> Path | None:
        """Where its exit heads lay when it was written; None without any, or if that is not known."""
        kept = self.provenance.get(HEADS_FILE)
        return None if kept is None else Path(str(kept))

    @property
    def tuned_on(self) -> TunedOn:
        """The documents that shaped the policy."""
        return TunedOn(self.document_digests, self.document_texts)


def faster_lossless(candidates: Iterable[Candidate], net_speedup: Estimate) -> Candidate | None:
    """The lossless candidate, if it is faster than plain decoding and what has this net speedup."""
    contender = next((candidate for candidate in candidates if candidate.lossless), None)
    if contender is None or contender.predicted_speed <= max(1.0, net_speedup.value or 1.0):
        return None
    return contender


def to_json(tuned: Tuned) -> dict[str, Any]:
    """The JSON object of a tuned policy, without its seal; "policy" is the policy's text."""
    return {"schema_version": TUNED_SCHEMA_VERSION, "kind": TUNED, **record_json(tuned)}


def write_tuned(path: Path, tuned: Tuned, heads_file: Path | None = None) -> None:
    """Write a tuned policy with its seal in one step (see `offramp.files.write_atomically`).

    heads_file: where the exit heads lie that it was tuned with, None without any. Kept relative to the policy
    if it lies beside or just above it, so that both can be moved together; their fingerprint is part of
    `Tuned.model`.
    """
    value = to_json(tuned)
    if heads_file is not None:
        value["provenance"][HEADS_FILE] = _place(heads_path(heads_file).resolve(), path.resolve().parent)
    write_sealed_json(path, value)


def _place(heads: Path, folder: Path) -> str:
    near = heads.parent in (folder, folder.parent)
    return os.path.relpath(heads, folder) if near else str(heads)


def is_tuned_file(path: Path) -> bool:
    """Whether a file calls itself a tuned policy, of whatever version."""
    try:
        return bool(read_policy_file(path).get("kind") == TUNED)
    except InputError:
        return False


def read_tuned(path: str | Path) -> Tuned:
    """The tuned policy that `write_tuned` wrote.

    It is read as people's files are, and not as a SealedFile: it may be copied and laid out anew, files of
    the version before are read, and what is wrong with it is an error of what was given.

    Raises InputError for a file that is none, that a newer offramp wrote, or that was changed since.
    """
    path = Path(path)
    value = read_policy_file(path)
    if value.get("kind") != TUNED:
        raise InputError(
            "the file holds no tuned policy", where=str(path), fix="give what offramp tune -o wrote"
        )
    require_whole(value, str(path))
    kept = value.get("provenance", {}).get(HEADS_FILE)
    if kept is not None:
        place = os.path.normpath(path.absolute().parent / kept)
        value["provenance"] = {**value["provenance"], HEADS_FILE: place}
    if "agreement" not in value and "quality" in value:  # the version before kept of it what its floor is of
        of_agreement = value.get("floor", {}).get("kind") == "agreement"
        unknown = {"value": None, "undefined": "a former version did not keep it"}
        value = {**value, "agreement": value["quality"] if of_agreement else unknown}
    what, fix = "the tuned policy is not what offramp writes", "run offramp tune again"
    with refused_as(InputError, what, InvalidRecordError, where=str(path), fix=fix):  # of another program
        tuned = from_json(Tuned, value)
    for kv in (tuned.kv, *(candidate.kv for candidate in tuned.candidates)):
        if kv not in STRATEGIES:
            raise InputError(f"{what} (kv: {shortened(repr(kv))})", where=str(path), fix=fix)
    return tuned


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class ShiftRow:
    """One check of the policy: the documents it was tuned on beside the other workload's."""

    tuned: Shift
    other: Shift

    @property
    def change(self) -> float:
        """How far the exit's agreement is from what it was."""
        return abs(self.other.agreement - self.tuned.agreement)


def shift_of(trace: Trace, policy: ExitPolicy) -> tuple[Shift, ...]:
    """What the policy reads at every checked exit, over all tokens of the trace, by exit.

    quantiles: of the first measured fact that it reads there, at `QUANTILES` (inverse of the distribution
    function: each is a recorded value); none where it reads token numbers only. agreement: share of tokens
    whose top-1 there is the full model's. calibration: mean of max_prob less that share, None if max_prob was
    not recorded.

    Raises PolicyError for exits that were not traced, InputError for a trace without tokens or without a
    fact, or for one that is not a number.
    """
    if not trace.token_count:
        raise InputError("the trace holds no tokens", fix="trace more text")
    own = policy.for_task(task_of(trace))
    trace = seen_by(own, trace)
    needs = {exit: facts for exit, facts in own.needs(trace.layers).items() if facts}
    columns = columns_of(trace, tuple(needs))
    confidence = trace.fact("max_prob") if "max_prob" in trace.fact_names else None
    shifts = []
    for (exit, facts), column in zip(needs.items(), columns, strict=True):
        # Facts that are token numbers are whole: their order means nothing.
        fact = next((name for name in facts if fact_of(trace, name).dtype.kind == "f"), None)
        agreement = float(np.mean(trace.agreement[:, column]))
        quantiles = () if fact is None else _quantiles(trace, fact, int(column), exit)
        calibration = None
        if confidence is not None:
            calibration = float(np.mean(confidence[:, column], dtype=np.float64)) - agreement
        shifts.append(Shift(exit, fact, quantiles, agreement, calibration))
    return tuple(shifts)


def shift_rows(tuned: tuple[Shift, ...], other: Trace, policy: ExitPolicy) -> tuple[ShiftRow, ...]:
    """The tuning documents beside another trace, at every exit that the policy checks on both.

    A policy that holds one per task may check other exits on other texts; those have no counterpart and no
    row. Raises as `shift_of` does.
    """
    before = {shift.exit: shift for shift in tuned}
    return tuple(
        ShiftRow(before[after.exit], after)
        for after in shift_of(other, policy)
        if after.exit in before and before[after.exit].fact == after.fact
    )


def _quantiles(trace: Trace, fact: str, column: int, exit: int) -> tuple[float, ...]:
    values = fact_of(trace, fact)[:, column]
    require_numbers(trace, fact, np.isnan(values), f"at exit {exit}")
    return tuple(float(value) for value in np.quantile(values, QUANTILES, method="inverted_cdf"))
