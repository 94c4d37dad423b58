"""Ways to decode a text beside each other: what each keeps, how fast it is, and how both are known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from offramp.policies.figures import NEVER
from offramp.policies.grammar import parse_policy
from offramp.policies.policy import ExitPolicy
from offramp.policies.short_names import SHORT_HEAD, short_name
from offramp.report.formats import counted, estimate_text, percent, too_wide, whole_percent
from offramp.report.run_result import Decoded, RunResult, WorkloadResult
from offramp.scoring.estimate import Estimate
from offramp.studies.work.decode import DecodedChoice
from offramp.timing.results import Contender
from offramp.tuning.certificate import Candidate

PLAIN, PEER = "plain", "peer"


@dataclass(frozen=True)
class Judged:
    """What a policy kept of texts that it generated for a certificate. documents: how many of them."""

    kept: Estimate[float]
    documents: int
    certified: float | None


@dataclass(frozen=True)
class Way:
    """One way to decode a text.

    timed: None of a policy that was decoded, and not timed. decoded: the policy, None of a way without one.
    floor: that it was chosen for. judged: on documents decoded for a certificate, None if on none.
    """

    timed: Contender | None
    decoded: DecodedChoice | Candidate | None = None
    floor: float | None = None
    judged: Judged | None = None

    @property
    def name(self) -> str:
        """Its short name."""
        if self.decoded is not None:
            return short_name(self.decoded.policy)
        assert self.timed is not None, "what has no policy was timed"
        return short_name(self.timed.name)

    @property
    def policy(self) -> ExitPolicy | None:
        """None of one without a policy."""
        if self.decoded is not None:
            return self.decoded.policy
        return parse_policy(self.timed.name) if self.timed is not None and self.name == SHORT_HEAD else None

    @property
    def kv(self) -> str | None:
        """Its strategy for keys and values, None of one without a policy."""
        return None if self.decoded is None else self.decoded.kv

    @property
    def on_prompts(self) -> Estimate[float] | None:
        """Share kept of its answers to the timed prompts, None if these were not judged."""
        if isinstance(self.decoded, DecodedChoice) and self.decoded.free_running is not None:
            return self.decoded.free_running.agreement
        if self.timed is None:
            return None
        return self.timed.executed_agreement or (Estimate(1.0) if self.timed.role == PLAIN else None)

    @property
    def exits(self) -> bool:
        """Whether tokens may leave early."""
        return self.policy is not None and self.name not in (SHORT_HEAD, short_name(NEVER))

    @property
    def kept(self) -> Estimate[float] | None:
        """What it keeps: of documents that were decoded for a certificate, else of the timed prompts."""
        return self.on_prompts if self.judged is None else self.judged.kept

    @property
    def speed(self) -> Estimate[float] | None:
        """Over plain decoding: measured, else predicted and without an interval."""
        if self.timed is not None:
            return self.timed.ratio
        return Estimate(self.decoded.predicted_speed) if isinstance(self.decoded, Candidate) else None

    @property
    def unsure(self) -> bool:
        """Whether its speed is a prediction, or of so few prompts that its interval says nothing."""
        speed = self.speed
        return self.timed is None or speed is None or too_wide(speed)

    @property
    def misses(self) -> bool:
        """Whether it is surely below the floor that it was chosen for, or not shown to reach it.

        The burden of proof: what is not certified must reach it with the lower end of its interval.
        """
        if self.floor is None:
            return False
        if self.judged is not None and self.judged.certified is not None:
            return self.judged.certified < self.floor
        kept = self.kept
        return kept is None or (kept.value if kept.low is None else kept.low) < self.floor


def ways_of(decoded: Decoded | None, workload: WorkloadResult | None) -> list[Way]:
    """Every way to decode that was timed or decoded, the fastest first; what misses its floor last."""
    found = [] if decoded is None else _timed(decoded, workload)
    known = {(one.policy, one.kv) for one in found}
    for tuned in () if workload is None else workload.tuned:
        for one in tuned.candidates:
            if one.executed is not None and (one.policy, one.kv) not in known:
                known.add((one.policy, one.kv))
                found.append(Way(None, one, tuned.floor.value, judged_of(workload, one)))
    return sorted(found, key=lambda one: (one.misses, -_value(one)))


def _value(one: Way) -> float:
    return 0.0 if one.speed is None else one.speed.value


def _timed(decoded: Decoded, workload: WorkloadResult | None) -> list[Way]:
    found, choices = [], {choice.contender: choice for choice in decoded.policies}
    for one in decoded.bench.contenders:
        choice = choices.get(one.name)
        if one.ratio is None:
            continue
        if choice is not None:
            found.append(Way(one, choice, choice.floor, judged_of(workload, choice)))
        elif one.role == PEER or one.without_exits:
            found.append(Way(one))
    return found


def judged_of(workload: WorkloadResult | None, policy: DecodedChoice | Candidate) -> Judged | None:
    """What a policy kept of the documents that it decoded for a certificate, None if it decoded none."""
    if workload is None:
        return None
    same = (policy.policy, policy.kv)
    certified = [one for one in workload.verdicts if (one.policy, one.kv) == same and one.certified]
    for verdict in sorted(certified, key=lambda one: -one.floor):
        certificate, kept = verdict.certificate, verdict.kept
        if certificate is not None and kept is not None and kept.value is not None:
            documents = certificate.stopped_after or certificate.documents
            return Judged(Estimate(kept.value, kept.low, kept.high), documents, verdict.floor)
    candidates = [one for tuned in workload.tuned for one in tuned.candidates]
    tried = [
        Judged(Estimate(one.executed), one.documents, None)
        for one in candidates
        if (one.policy, one.kv) == same and one.executed is not None
    ]
    return max(tried, key=lambda judged: judged.documents, default=None)


def best_without_exits(ways: Sequence[Way], floor: float, named: str = "") -> Way | None:
    """The fastest way that was timed, runs every layer and keeps a floor, None where none was timed.

    named: the one that a verdict is decided over, where it says which.
    """
    timed = [one for one in ways if one.timed is not None and not one.exits]
    decisive = [one for one in timed if one.timed is not None and one.timed.name == named]
    keeping = [one for one in timed if not one.unsure and (one.kept is None or one.kept.value >= floor)]
    return max(decisive or keeping, key=_value, default=None)


def kept_text(one: Way) -> str:
    """What it keeps, and on what that rests: documents of a certificate and prompts of a timing are two."""
    if one.judged is not None:
        found = one.judged
        held = "" if found.certified is None else f", certified ≥ {whole_percent(found.certified)}"
        return f"{estimate_text(found.kept, percent)} of {counted(found.documents, 'document')}{held}"
    if one.policy is None and one.kept is not None and one.kept.value == 1.0:
        return "100 %, lossless"
    return "not judged" if one.kept is None else f"{estimate_text(one.kept, percent)} of the timed prompts"


def floor_text(one: Way) -> str:
    """That it is not shown to keep its floor; "" if it is, or has none."""
    return f"not shown to keep {whole_percent(one.floor)}" if one.misses and one.floor is not None else ""


def ways_by_text(run: RunResult) -> dict[str, list[Way]]:
    """`ways_of` every text of a run that has any."""
    found = {one.name: ways_of(run.decoded(one.name), one) for one in run.workloads}
    found |= {one.workload: ways_of(one, None) for one in run.decoding if one.workload not in found}
    return {name: ways for name, ways in found.items() if ways}
