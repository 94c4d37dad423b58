"""What the verdict and its league hold: plain data for reports, files and machines."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from offramp.policies.cost_breakdown import Gain
from offramp.scoring.estimate import Estimate
from offramp.tuning.tuned import Candidate, Certificate

Decision = Literal["pays", "does not pay", "too close to call", "not enough documents"]


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
    "too close to call", or how many documents are needed where there are too few. policy, kv: "never" if
    nothing is faster; kv is None where nothing was executed. certificate: executed, or a replay bound, None
    if neither was asked for. executed_agreement: of documents that did not choose the policy. speed:
    measured if it was, else predicted.
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

    def __repr__(self) -> str:
        return f"Verdict({self.decision} at {self.floor:.4g} agreement with {self.policy}: {self.reason})"

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
class LeagueEntry:
    """One family of policies at one floor: its fastest member, chosen on one half of the documents.

    family: "max_prob, all exits", "restricted_margin, 3 exits", "patience", ... reachable: False for an
    oracle. agreement, skip_ratio, net_speedup, reference_agreement (as a verdict's): on the other half.
    probe_share: probes' share of the policy's seconds; probe_seconds: of one token. parts: seconds of one
    token by part of the bill (the names of `offramp.policies.cost_breakdown.PARTS`), summing to
    seconds_per_token; empty where not kept. chosen: whether it was the fastest early exit on the half that
    chose (the full model if none beat what leaves no layer out), and so is the verdict's policy; the fastest
    on the other half may be another by luck. gain: what each part of a step saves on the other half, None
    where not kept. full_depth: whether it leaves no layer out: what it gains, plain decoding could gain.
    rank: its place among the families by speed on the half that chose, from 1; None for oracles and the full
    model, which nobody chose.
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
