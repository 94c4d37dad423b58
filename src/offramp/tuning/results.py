"""What tuning, prediction and the verdict hold: plain data for reports, files and machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from offramp.policies.binding import TunedOn
from offramp.policies.gain import Gain
from offramp.scoring.documents import Lengths, lengths_text
from offramp.scoring.estimate import Estimate

Decision = Literal["pays", "does not pay", "too close to call"]
FloorKind = Literal["agreement", "reference_agreement", "nll", "kl"]
FloorAnswer = Literal["holds", "broken", "not decided"]


@dataclass(frozen=True)
class Floor:
    """A quality floor: what the user will not give up.

    kind: "agreement" or "reference_agreement" (shares of tokens; the latter with the untransformed full
    model), "nll" (increase) or "kl" (nats). value: as the user gave it. clip: B, the loss in nats at which a
    token's loss is cut ("nll", "kl"). risk: the largest mean loss allowed, in [0, 1]: 1 - value of a share,
    value / clip of the others.
    """

    kind: FloorKind
    value: float
    clip: float | None = None

    @property
    def risk(self) -> float:
        """Largest mean loss allowed, as a share of the largest possible loss."""
        return 1.0 - self.value if self.clip is None else self.value / self.clip

    def __str__(self) -> str:
        """As on the command line: agreement=0.99."""
        return f"{self.kind}={self.value:g}"


@dataclass(frozen=True)
class Certificate:
    """A statement about documents that tuning never saw, and what it rests on.

    executed: whether the losses are of texts that were really decoded; else it is a *replay bound*, which
    says nothing of what the policy's own K and V and its own tokens do to later tokens.
    method: "wsr", "hb", "crc" or "naive". guarantee: what is stated in one plain sentence; for "naive",
    that nothing is. holds: whether it holds for the policy at the floor. delta: the chance that the statement
    is wrong, None where the method has none. documents: at hand to test on. empirical_risk: mean loss on
    those that settled it.
    risk_bound: what the mean loss of all such documents does not exceed, but for a chance of delta, although
    these documents chose the policy: the allowed risk; None without such a bound. best_floor: the floor that
    so many documents without one loss could certify at best. documents_needed: documents without one loss
    that the asked floor needs. tested, passed: how many candidates, in sequence. assumption: in words.
    document_tokens: fewest, median and most tokens of a document that was replayed, None where none was.
    Of an executed one: kv: the strategy for K and V that was decoded with. prompt_tokens: of each text's
    opening, None for prompts taken whole. new_tokens: of an answer, at most. stopped_after: documents of the
    chosen candidate, or of the last one tested, after which its test was settled, None if none was tested.
    """

    method: str
    guarantee: str
    holds: bool
    delta: float | None
    documents: int
    empirical_risk: float | None
    risk_bound: float | None
    best_floor: float
    documents_needed: int
    tested: int
    passed: int
    assumption: str
    executed: bool = False
    kv: str | None = None
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    stopped_after: int | None = None
    document_tokens: Lengths | None = None

    @property
    def of_tokens(self) -> str:
        """How long its documents are, to follow "documents": " of 16 tokens"; nothing if not known."""
        return certified_lengths(self.document_tokens, self.new_tokens)


def certified_lengths(document_tokens: Sequence[int] | None, new_tokens: int | None) -> str:
    """How long the documents of a certificate are, of these of its fields."""
    if new_tokens is None:
        return lengths_text(document_tokens)
    return f" of up to {new_tokens:,} new token{'' if new_tokens == 1 else 's'}"


@dataclass(frozen=True)
class Speed:
    """Seconds of the fastest plain decoder over a policy's.

    low, high: the interval, None where there is none. how: "measured" by a stopwatch, or "predicted" from
    exits and prices. machine: its name, "bytes moved" where no machine was given. at_hand: whether the
    machine could have been asked: a prediction then only shows that something is too slow. seconds: that the
    measurement took, None if not known.
    """

    value: float
    low: float | None
    high: float | None
    how: Literal["measured", "predicted"]
    machine: str
    at_hand: bool
    seconds: float | None = None


@dataclass(frozen=True)
class Verdict:
    """Whether early exit pays at one quality floor, by the one rule (`offramp.tuning.verdict.decide`).

    worth: the gain in speed from which on it counts as paying. missing: what would settle a verdict that is
    "too close to call". policy, kv: "never" if nothing is faster; kv is None where nothing was executed.
    certificate: executed, or a replay bound, None if neither was asked for. executed_agreement: of documents
    that did not choose the policy. speed: measured if it was, else predicted.
    Beside it, replayed on one half of the documents a policy that was chosen on the other: replayed_policy,
    its agreement, skip_ratio, net_speedup (in `basis`: "bytes moved", or seconds on the machine of that name)
    and reference_agreement (with the untransformed full model, None without transforms).
    documents_needed: documents without a loss that a certificate of this floor at its delta needs at least.
    gain: what each part of a step saves in the speed that is shown, None where that is not known. without:
    the fastest policy at this floor that leaves no layer out, as replayed ("never", or the short list at full
    depth). credit: the speed over that one, by which it is decided; None where there is no speed.
    tried: where nothing is certified and nothing is out of reach, the candidate that was decoded on too few
    documents so far; speed, if any, is its own.
    """

    floor: float
    worth: float
    decision: Decision
    reason: str
    missing: tuple[str, ...]
    policy: str
    kv: str | None
    certificate: Certificate | None
    executed_agreement: Estimate | None
    speed: Speed | None
    replayed_policy: str
    agreement: Estimate
    skip_ratio: Estimate
    net_speedup: Estimate
    net_speedup_flops: Estimate
    fit_agreement: float
    fit_documents: int
    report_documents: int
    documents_needed: int
    basis: str = "bytes moved"
    reference_agreement: Estimate | None = None
    gain: Gain | None = None
    without: str = "never"
    credit: Estimate | None = None
    tried: Candidate | None = None

    @property
    def certified(self) -> bool:
        """Whether what decodes is certified at the floor; a replay bound is no certificate."""
        return self.certificate is not None and self.certificate.executed and self.certificate.holds

    @property
    def kept(self) -> Estimate | None:
        """What the policy keeps as executed: of documents that did not choose it, else of those that did."""
        if self.executed_agreement is not None and self.executed_agreement.value is not None:
            return self.executed_agreement
        risk = None if self.certificate is None else self.certificate.empirical_risk
        return None if risk is None else Estimate(1.0 - risk)


@dataclass(frozen=True)
class Candidate:
    """One policy with a K,V strategy that was to be certified, or the lossless contender.

    replayed, rerun: agreement on the search documents, means over documents: with the full model's K and V,
    and as the strategy leaves them. executed: mean agreement on the documents that it was decoded on, None if
    on none. documents: how many. predicted_speed: plain cost over its own, on the search documents.
    passed: whether it is certified (of a lossless strategy, whose output is the full model's: true), None if
    it was not tested. outcome: how its test ended, or why there was none. draft_length: of a strategy that
    drafts.
    """

    policy: str
    kv: str
    replayed: float
    rerun: float
    executed: float | None
    documents: int
    predicted_speed: float
    passed: bool | None
    outcome: str
    draft_length: int | None = None


@dataclass(frozen=True)
class FrontPoint:
    """One candidate of the Pareto front on the search documents, from cautious to bold.

    risk: mean loss over documents. quality: in the floor's own unit. seconds_per_token, net_speedup:
    predicted on the machine.
    """

    policy: str
    risk: float
    quality: float
    seconds_per_token: float
    net_speedup: float
    skip_ratio: float


@dataclass(frozen=True)
class Shift:
    """How the tuning documents look to a policy at one of its checks, kept to compare other texts with.

    quantiles: of the first signal that the policy reads there, at `QUANTILES`. agreement: share of tokens on
    which this exit agrees with the full model. calibration: mean of max_prob less that share.
    """

    exit: int
    fact: str | None
    quantiles: tuple[float, ...]
    agreement: float
    calibration: float | None


@dataclass(frozen=True)
class Tuned:
    """The answer of the tuner: the fastest policy that passed, or the full model and why.

    policy_text: "never" if nothing passed or nothing beats the full model. answer: one plain sentence.
    quality, skip_ratio, net_speedup, seconds_per_token, reference_agreement: on report documents that neither
    search nor certificate saw (None values if there are none): as rerun with an executed certificate, else
    replayed; of the exits taken in lockstep at a batch above 1, where bound and front are of each token
    alone. executed_agreement: share of the tokens it generates that are the full model's choice on the same
    prefix, of documents that did not choose the policy, mean over documents; None if nothing was decoded.
    candidates: what was to be certified, in the order of the tests, the lossless contender last.
    plain_seconds_per_token: the full model on
    the same machine. probe_share: probes' share of the policy's seconds. front: on the search documents.
    documents: how many of each role ("heads", "search", "certify", "report"). document_digests: SHA-256 of
    the ids and workload of the search and certify documents, by role; document_texts: sketches of their texts
    (`offramp.workloads.shared_text`), by role. model: what the policy is bound to, as
    `offramp.policies.binding.base_of` gives it. provenance: the seed, offramp's version, the machine's whole
    profile (None without a machine) and the fingerprint of the trace. gain: what each part of a step saves on
    the report documents, None without any.
    """

    floor: Floor
    policy_text: str
    answer: str
    certificate: Certificate
    quality: Estimate
    skip_ratio: Estimate
    net_speedup: Estimate
    seconds_per_token: Estimate
    plain_seconds_per_token: float
    probe_share: float
    machine: str
    batch: int
    kv: str
    front: tuple[FrontPoint, ...]
    shift: tuple[Shift, ...]
    documents: Mapping[str, int]
    document_digests: Mapping[str, tuple[str, ...]]
    model: Mapping[str, Any] = field(default_factory=dict)
    workload: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    reference_agreement: Estimate | None = None
    executed_agreement: Estimate | None = None
    candidates: tuple[Candidate, ...] = ()
    gain: Gain | None = None
    document_texts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def tuned_on(self) -> TunedOn:
        """The documents that shaped the policy."""
        return TunedOn(self.document_digests, self.document_texts)

    @property
    def policy(self) -> Any:
        """The policy object."""
        from offramp.policies.grammar import parse_policy

        return parse_policy(self.policy_text)


@dataclass(frozen=True)
class LeagueEntry:
    """One family of policies at one floor: its fastest member, chosen on one half of the documents.

    family: "max_prob, all exits", "restricted_margin, 3 exits", "patience", ... reachable: False for an
    oracle. agreement, skip_ratio, net_speedup, reference_agreement (as a verdict's): on the other half.
    probe_share: probes' share of the policy's seconds; probe_seconds: of one token. parts: seconds of one
    token by part of the bill (the names of `offramp.policies.bill.PARTS`), summing to seconds_per_token;
    empty where not kept. chosen: whether it was the fastest early exit on the half that chose (the full model
    if none beat what leaves no layer out), and so is the verdict's policy; the fastest on the other half may
    be another by luck. gain: what each part of a step saves on the other half, None where not kept.
    full_depth: whether it leaves no layer out: what it gains, plain decoding could gain. rank: its place
    among the families by speed on the half that chose, from 1; None for oracles and the full model, which
    nobody chose.
    """

    family: str
    policy: str
    reachable: bool
    floor: float
    agreement: Estimate
    skip_ratio: Estimate
    net_speedup: Estimate
    seconds_per_token: float
    probe_share: float
    probe_seconds: float
    parts: Mapping[str, float] = field(default_factory=dict)
    chosen: bool = False
    reference_agreement: Estimate | None = None
    gain: Gain | None = None
    full_depth: bool = False
    rank: int | None = None


@dataclass(frozen=True)
class MachineAnswer:
    """The best policy at one floor on one machine and batch size, judged on unseen documents.

    decision, reference_agreement: as a verdict's. source: where the machine's numbers come from.
    plain_seconds_per_token: of the full model there. without: as a verdict's.
    """

    machine: str
    source: str
    batch: int
    floor: float
    policy: str
    decision: Decision
    net_speedup: Estimate
    agreement: Estimate
    plain_seconds_per_token: float
    reference_agreement: Estimate | None = None
    without: str = "never"


@dataclass(frozen=True)
class BreakEven:
    """What would have to change for one policy to pay.

    lever: "probe", "head", "layer" or "key and value repair". now: today's seconds of one such part (of one
    layer, one probe, ...). needed: the seconds at which the net speedup reaches the target, None if no value
    does. factor: needed / now. sentence: in plain words.
    """

    policy: str
    lever: str
    now: float
    needed: float | None
    factor: float | None
    target: float
    sentence: str


@dataclass(frozen=True)
class SignalBreakEven:
    """How cheap one check of a signal would have to be for its best policy to pay at a floor.

    now: today's price of one check, in layers (of the mean layer). needed: the price, in layers, at which the
    net speedup of the best `policy` reaches the target; None if even free checks do not suffice, the policy
    then being the fastest with free checks (None if no threshold holds the floor). free_speedup: net speedup
    of the fastest policy at that floor if checks were free. sentence: in plain words.
    """

    signal: str
    floor: Floor
    target: float
    policy: str | None
    now: float
    needed: float | None
    free_speedup: float | None
    sentence: str


@dataclass(frozen=True)
class ShiftRow:
    """One check of the policy: the documents it was tuned on beside the other workload's."""

    exit: int
    fact: str | None
    tuned_quantiles: tuple[float, ...]
    other_quantiles: tuple[float, ...]
    tuned_agreement: float
    other_agreement: float
    tuned_calibration: float | None
    other_calibration: float | None


@dataclass(frozen=True)
class Prediction:
    """What a policy would do on another workload or machine.

    floor_answer: "holds" if the lower confidence limit of the quality reaches the floor, "broken" if the
    upper one misses it, else "not decided"; None for a policy without a floor. risk_low, risk_high: two-sided
    confidence limits of the mean loss at delta (betting bound), None without a floor. batching: "lockstep",
    of all figures, None at batch 1. reachable: False for an oracle. reference_agreement: as a verdict's.
    gain: what each part of a step saves, None where that is not known of a batch.
    document_tokens: fewest, median and most tokens of a document.
    """

    policy: str
    workload: str
    machine: str
    batch: int
    floor: Floor | None
    quality: Estimate
    agreement: Estimate
    skip_ratio: Estimate
    net_speedup: Estimate
    seconds_per_token: float
    plain_seconds_per_token: float
    probe_share: float
    floor_answer: FloorAnswer | None
    risk_low: float | None
    risk_high: float | None
    delta: float
    documents: int
    batching: str | None
    reachable: bool
    shift: tuple[ShiftRow, ...]
    notes: tuple[str, ...]
    reference_agreement: Estimate | None = None
    gain: Gain | None = None
    document_tokens: Lengths | None = None
