"""What tuning, prediction and the verdict hold: plain data for reports, files and machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from offramp.policies.gain import Gain
from offramp.scoring.estimate import Estimate

Decision = Literal["pays", "does not pay", "too close to call"]
FloorKind = Literal["agreement", "reference_agreement", "nll", "kl"]
FloorAnswer = Literal["holds", "broken", "not decided"]


@dataclass(frozen=True)
class Verdict:
    """Whether early exit pays at one quality floor: chosen on one half of the documents, judged on the other.

    policy: the chosen policy's text, "never" if no policy beat the full model on the first half.
    agreement, skip_ratio, net_speedup (in `basis`: "bytes moved", or seconds on the machine of that name) and
    reference_agreement (with the untransformed full model, None without transforms): on unseen documents.
    documents_needed: documents without a loss that a certificate of this floor at delta = 0.1 needs at least.
    gain: what each part of a step saves on the unseen documents, None where nothing was judged. without: the
    fastest policy at this floor that leaves no layer out ("never", or the short list at full depth). credit:
    the policy's speed over that one, by which it is decided; None where nothing was judged.
    """

    floor: float
    decision: Decision
    reason: str
    policy: str
    agreement: Estimate
    skip_ratio: Estimate
    net_speedup: Estimate
    net_speedup_flops: Estimate
    fit_agreement: float
    fit_documents: int
    report_documents: int
    documents_needed: int
    floor_held: bool
    basis: str = "bytes moved"
    reference_agreement: Estimate | None = None
    gain: Gain | None = None
    without: str = "never"
    credit: Estimate | None = None


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

    method: "wsr", "hb", "crc" or "naive". guarantee: what is guaranteed in one plain sentence; for "naive",
    that nothing is. holds: whether the policy is certified at the floor. delta: the chance that the statement
    is wrong, None where the method has none. documents: that it rests on. empirical_risk: mean loss on them.
    risk_bound: what the mean loss of all such documents does not exceed, but for a chance of delta, although
    these documents chose the policy: the allowed risk; None without such a bound. best_floor: the floor that
    so many documents without one loss could certify at best. documents_needed: documents without one loss
    that the asked floor needs. tested, passed: how many candidates, in sequence. assumption: in words.
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
    """The answer of the tuner: the fastest certified policy, or the full model and why.

    policy_text: "never" if nothing was certified or nothing beats the full model. answer: one plain sentence.
    quality, skip_ratio, net_speedup, seconds_per_token, reference_agreement: on report documents that neither
    search nor certificate saw (None values if there are none); of the exits taken in lockstep at a batch
    above 1, where certificate and front are of each token alone. plain_seconds_per_token: the full model on
    the same machine. probe_share: probes' share of the policy's seconds. front: on the search documents.
    documents: how many of each role ("heads", "search", "certify", "report"). document_digests: SHA-256 of
    the ids and workload of the search and certify documents, by role. model: what the policy is bound to, as
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
    gain: Gain | None = None

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
