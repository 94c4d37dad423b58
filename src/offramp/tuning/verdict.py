"""Whether early exit pays at a quality floor: one rule, for runs, tuning, predictions and studies alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

from offramp.defaults import BYTES, LOCAL, MAIN_FLOOR
from offramp.kit.numbers import NotNegative, Number, Whole
from offramp.kit.typed import NumberOrNan
from offramp.policies.figures import NEVER, PLAIN_DECODING, KeptAndSaved, PositiveOf, ShareOf
from offramp.policies.policy import ExitPolicy
from offramp.policies.whole_request import WholeRequest, of_request
from offramp.scoring.estimate import Estimate, require_ordered
from offramp.scoring.text_quality import TextQuality
from offramp.tuning.certificate import Candidate, Certificate
from offramp.tuning.tuned import FloorStanding, Tuned
from offramp.tuning.verdict_words import CONTRADICTED, missing_of, settled_reason

Decision = Literal["pays", "does not pay", "inconclusive"]
Lack = Literal["interval", "time", "data"]
"""What an inconclusive answer lacks: an interval that leaves out 1 + worth, time, or documents."""
Outcome = Literal["pays", "does not pay", "interval", "time", "data"]
"""A decision, or what is lacking for one."""

CONCEIVABLE = 0.5
"""Share of the worth by prediction from which on a policy may be worth it when it is decoded: the same policy
was foretold 1.044 x by one profile and less than 1.040 by the next, and measured as 1.10. The fastest that
keeps the floor is tried from there on; less, and a prediction refuses."""

INCONCLUSIVE: Decision = "inconclusive"


def decision_of(outcome: Outcome) -> Decision:
    """The decision of an outcome."""
    return outcome if outcome == "pays" or outcome == "does not pay" else INCONCLUSIVE


@dataclass(frozen=True)
class Speed:
    """Seconds of the fastest plain decoder over a policy's."""

    value: Number
    low: Number | None
    """With `high` its interval, None where there is none."""
    high: Number | None
    how: Literal["measured", "predicted"]
    """By a stopwatch, or from exits and prices."""
    machine: str
    """Its name, "bytes moved" where no machine was given."""
    at_hand: bool
    """Whether the machine could have been asked: a prediction then only shows that something is too slow."""
    seconds: NotNegative | None = None
    """That the measurement took, None if not known."""

    def __post_init__(self) -> None:
        require_ordered(self.low, self.high)


@dataclass(frozen=True)
class TimedPolicy:
    """What a stopwatch said of one policy."""

    speed: Speed
    """Over the fastest plain decoder of the same turns."""
    credit: PositiveOf[Estimate] | None = None
    """Over the best decoder without exits of the same turns that keeps the floor; None where it is not known
    which that is."""
    over: str = "never"
    """That decoder's name."""
    kept: ShareOf[Estimate] | None = None
    """Share of its answers to the timed prompts that is the full model's choice; None if not judged."""

    def contradicts(self, floor: float) -> bool:
        """Whether these answers are surely below a floor, whatever a certificate says."""
        kept = self.kept
        if kept is None or kept.value is None:
            return False
        return (kept.value if kept.high is None else kept.high) < floor


@dataclass(frozen=True, kw_only=True)
class Verdict(KeptAndSaved):
    """Whether early exit pays at one quality floor, by the one rule (`offramp.tuning.verdict.decide`).

    What is kept and saved (`KeptAndSaved`) is of `replayed_policy`, in replay: chosen on one half of the
    documents, judged on the other. The gain is of the speed that is shown.
    """

    READ_OFF: ClassVar[tuple[str, ...]] = ("certified", "decision")
    IF_ANY: ClassVar[tuple[str, ...]] = ("request", "decoding", "text_quality")

    floor: Number
    worth: Number
    """The gain in speed from which on it counts as paying."""
    outcome: Outcome
    reason: str
    missing: tuple[str, ...]
    """What would settle a verdict that is inconclusive, or how many documents are needed."""
    policy: ExitPolicy
    """`Never` if nothing is certified that is faster."""
    kv: str | None
    """None where nothing was executed."""
    certificate: Certificate | None
    """Executed, or a replay bound; None if neither was asked for."""
    executed_agreement: ShareOf[Estimate] | None
    """Of documents that did not choose the policy."""
    speed: Speed | None
    """Over plain decoding, of the policy or of what was tried; measured if it was, else predicted. Of a whole
    request where there is one, as `credit` is."""
    replayed_policy: ExitPolicy
    net_speedup_flops: PositiveOf[Estimate]
    fit_agreement: NumberOrNan
    """On the half that chose."""
    fit_documents: Whole
    report_documents: Whole
    documents_needed: Whole
    """Documents without a loss that a certificate of this floor at its delta needs at least."""
    basis: str = "bytes moved"
    """What `net_speedup` is counted in: that, or seconds on the machine of this name."""
    without: str = "never"
    """The best decoder without exits that keeps the floor."""
    without_speed: NotNegative | None = None
    """Of that decoder over plain decoding, at the lower limit; None where it is not known."""
    credit: PositiveOf[Estimate] | None = None
    """Speed over that decoder, by which it is decided: measured in the same turns where the speed is, else
    predicted; None where it is not known."""
    tried: Candidate | None = None
    """Where nothing is certified, the candidate that was decoded last, and maybe refuted."""
    standing: FloorStanding | None = None
    """How the floor stands after decoding, None where nothing was to be decoded."""
    request: WholeRequest | None = None
    """Of a model with an encoder, what decoding is of a request."""
    decoding: Speed | None = None
    """Beside a request's speed that of its tokens alone."""
    text_quality: TextQuality | None = None
    """Of what the policy writes, or what was tried, where documents say what is to be written; it decides
    nothing."""

    @property
    def decision(self) -> Decision:
        """The label."""
        return decision_of(self.outcome)

    @property
    def lack(self) -> Lack | None:
        """What is lacking for a decision; None of a verdict that is settled."""
        return None if self.outcome == "pays" or self.outcome == "does not pay" else self.outcome

    @property
    def speed_of_tokens(self) -> Speed | None:
        """That of decoding alone, whatever `speed` is of."""
        return self.decoding or self.speed

    @property
    def hopeless(self) -> WholeRequest | None:
        """The request, where it could gain so little that nothing was searched."""
        return self.request if self.request is not None and self.request.refuses(self.worth) else None

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


def from_main(floor: float) -> float:
    """How far a floor is from the main one: the nearest answers where the main one was not asked for."""
    return abs(floor - MAIN_FLOOR)


def decide(
    *, worth: float, credit: Speed | None, certified: bool, refuted: bool = False, fastest: bool = True
) -> Outcome:
    """The rule of the verdict, for one model, text, machine, batch size and floor.

    credit: speed over the best decoder without exits, of the candidate that is certified, or may yet be; None
    without one. certified: whether its executed agreement is certified at the floor. refuted: whether no
    policy that could gain what is worth it keeps the floor, as tried. fastest: whether no bolder candidate is
    still to be tested. On the machine at hand a prediction refuses below `CONCEIVABLE` of the worth: more may
    come out when it is decoded.

    "pays": certified, and the lower limit of a measured credit exceeds 1 + worth, or of a predicted one where
    the machine is not at hand. "does not pay": refuted, or the upper limit of the fastest candidate's credit
    lies below 1 + worth. Else it is inconclusive. "interval": certified and measured, with 1 + worth inside
    the interval. "time": something was not decoded or not timed. (`settle` says "data" in its place where the
    documents could not have certified anything.)
    """
    foretold = credit is not None and credit.how == "predicted" and credit.at_hand
    enough = CONCEIVABLE * worth if foretold else worth
    if refuted or (fastest and credit is not None and credit.high is not None and credit.high < 1.0 + enough):
        return "does not pay"
    if not certified or credit is None or foretold:
        return "time"
    if credit.low is not None and credit.low > 1.0 + worth:
        return "pays"
    return "interval" if fastest else "time"


def decide_replayed(policy: ExitPolicy, speedup: Estimate, machine: str, worth: float) -> Outcome:
    """The outcome that a replay on unseen documents allows: it may refuse, and never promises.

    speedup: over the fastest decoder that leaves no layer out.
    """
    if policy == PLAIN_DECODING:
        return "does not pay"
    return decide(worth=worth, credit=predicted_speed(speedup, machine), certified=False)


def predicted_speed(speedup: Estimate, machine: str) -> Speed | None:
    """A predicted net speedup; None where it is undefined."""
    if speedup.value is None:
        return None
    at_hand = machine in (LOCAL, BYTES)  # bytes stand for the machine at hand, which was not timed
    return Speed(speedup.value, speedup.low, speedup.high, "predicted", machine, at_hand)


def settle(verdict: Verdict, tuned: Tuned, timed: TimedPolicy | None = None) -> Verdict:
    """A replayed verdict with what was executed and timed: the tuner's answer at its floor, the stopwatch's.

    tuned: by execution (`offramp.tune` with a model). timed: of the tuned policy, or of what was tried
    (`judged_policy`), None if it was not timed.
    """
    standing, exits = tuned.standing, not tuned.plain
    contradicted = timed is not None and timed.contradicts(verdict.floor)
    certified = standing == "certified" and exits and not contradicted
    tried = None if exits or not tuned.tested else tuned.tested[-1]
    speed = credit = None
    if exits or tried is not None:
        # Of a candidate it is on the documents that proposed it, which is no interval.
        foretold = tuned.net_speedup if tried is None else Estimate(tried.predicted_speed)
        speed = predicted_speed(foretold, tuned.machine) if timed is None else timed.speed
        alone = _credit(tuned, speed, timed)
        credit = of_request(verdict.request, alone, None if speed is None else speed.value)
    decoding, speed = speed, of_request(verdict.request, speed)
    by_standing = None if standing is None else DECIDED[standing]
    refuted = by_standing == "does not pay" or (certified and tuned.policy.full_depth)
    candidates = [candidate for candidate in tuned.candidates if not candidate.lossless]
    fastest = not tuned.bolder_open if exits else tried is not None and tried == candidates[-1]
    if not fastest and timed is not None and credit is not None and credit.high is not None:
        # A bolder one is faster by what it was predicted to be; what is too slow even so needs no test.
        own = tuned.net_speedup.value if tried is None else tried.predicted_speed
        boldest = max(candidate.predicted_speed for candidate in candidates)
        fastest = credit.high * max(1.0, boldest / (own or 1.0)) < 1.0 + verdict.worth
    outcome = decide(
        worth=verdict.worth, credit=credit, certified=certified, refuted=refuted, fastest=fastest
    )
    replayed = outcome == "time" and not exits and tried is None
    if replayed and verdict.outcome == "does not pay":
        outcome = "does not pay"  # replay already says that nothing is worth it, before any drift
    if outcome == "time" and by_standing is not None:
        outcome = by_standing
    if outcome == "time" and _lacks_documents(tuned):
        outcome = "data"  # which no time would bring
    without = _baseline_of(verdict, tuned) if timed is None or timed.credit is None else timed.over
    grounds = tuned.grounds
    known = grounds is not None and grounds.baseline == without != NEVER
    settled = replace(
        verdict,
        outcome=outcome,
        policy=tuned.policy,
        kv=tuned.kv if exits else None,
        certificate=tuned.certificate,
        executed_agreement=tuned.executed_agreement,
        speed=speed,
        documents_needed=tuned.certificate.documents_needed,
        gain=tuned.gain if tried is None else None,
        tried=tried,
        without=without,
        without_speed=1.0 / grounds.without if known and grounds is not None else None,
        credit=None if credit is None else Estimate(credit.value, credit.low, credit.high),
        standing=standing,
        decoding=None if verdict.request is None else decoding,
        text_quality=tuned.text_quality,
    )
    reason = verdict.reason if replayed and outcome == "does not pay" else settled_reason(settled, tuned)
    if exits and contradicted and settled.lack is not None:
        return replace(settled, outcome="data", reason=reason, missing=(CONTRADICTED,))
    missing = missing_of(settled, tuned) if settled.lack is not None else ()
    return replace(settled, reason=reason, missing=missing)


def _baseline_of(verdict: Verdict, tuned: Tuned) -> str:
    """The best baseline as far as it is known without timing beside it."""
    known = NEVER if tuned.grounds is None else tuned.grounds.baseline
    return verdict.without if known == NEVER else known


def _lacks_documents(tuned: Tuned) -> bool:
    """Whether all documents at hand, decoded, could not certify the floor even if none lost anything."""
    certificate, grounds = tuned.certificate, tuned.grounds
    few = certificate.executed and certificate.documents < certificate.documents_needed
    return few and (grounds is None or certificate.documents >= grounds.at_hand)


DECIDED: Mapping[FloorStanding, Outcome | None] = {
    "certified": None,
    "refuted": "does not pay",
    "nothing could pay": "does not pay",
    "nothing faster": "does not pay",
    "too few documents": "data",
    "not settled": "time",
}
"""What how a floor stands says of early exit by itself; None of one whose speed decides."""


def settle_all(
    verdicts: Sequence[Verdict],
    tuned: Sequence[Tuned],
    timed: Callable[[Tuned], TimedPolicy | None] = lambda tuned: None,
) -> tuple[Verdict, ...]:
    """`settle` at every floor that the tuner answered. timed: what the stopwatch said of an answer."""
    by_floor = {answer.floor.value: (answer, timed(answer)) for answer in tuned}
    return tuple(
        settle(verdict, *by_floor[verdict.floor]) if verdict.floor in by_floor else verdict
        for verdict in verdicts
    )


def judged_policy(tuned: Tuned) -> tuple[ExitPolicy, str] | None:
    """The policy that a verdict is about, with its K,V strategy: what is certified, else what was tried last.

    None where nothing was decoded.
    """
    if not tuned.plain:
        return tuned.policy, tuned.kv
    return (tuned.tested[-1].policy, tuned.tested[-1].kv) if tuned.tested else None


def _credit(tuned: Tuned, speed: Speed | None, timed: TimedPolicy | None) -> Speed | None:
    """What exits add to the best decoder without them.

    Predicted, both are. A measured speed over plain decoding, where the best decoder without exits was not
    timed beside it, is an upper limit: that one is at least as fast as plain decoding.
    """
    if timed is not None and timed.credit is not None and timed.credit.value is not None:
        measured = timed.credit
        return replace(timed.speed, value=timed.credit.value, low=measured.low, high=measured.high)
    if speed is None or timed is not None:
        return None if speed is None else replace(speed, low=None)
    share = 1.0 if tuned.grounds is None else tuned.grounds.without
    low, high = (None if limit is None else limit * share for limit in (speed.low, speed.high))
    return replace(speed, value=speed.value * share, low=low, high=high)
