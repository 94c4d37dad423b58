"""Whether early exit pays at a quality floor: one rule, for runs, tuning, predictions and studies alike."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from offramp.errors import InputError
from offramp.policies.cost_breakdown import Gain
from offramp.records.typed import NumberOrNan
from offramp.scoring.estimate import Estimate
from offramp.tuning.certificate import Candidate, Certificate
from offramp.tuning.tuned import Tuned

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
    fit_agreement: NumberOrNan
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


WORTH = 0.05
"""The gain in speed from which on early exit is worth its trouble."""

MAIN_FLOOR = 0.95
"""Agreement at which is answered first, and at which other machines and break-even prices are asked for."""

TOO_WIDE = 1.5
"""An interval that reaches so many times above a speed, or below, only says that samples are few."""

LOCAL = "local"
NEVER = "never"
TOO_FEW: Decision = "not enough documents"

AT_HAND = "documents_at_hand"
"""In a tuned policy's provenance: documents to certify on, whether or not so many were allowed."""


def from_main(floor: float) -> float:
    """How far a floor is from the main one: the nearest answers where the main one was not asked for."""
    return abs(floor - MAIN_FLOOR)


def decide(*, worth: float, speed: Speed | None, certified: bool, refuted: bool) -> Decision:
    """The rule of the verdict, for one model, text, machine, batch size and floor.

    speed: of the fastest candidate that is certified, or may yet be; None without one. certified: whether its
    executed agreement is certified at the floor. refuted: whether nothing faster than plain decoding can be
    certified, although the documents would have sufficed.

    (`settle` says "not enough documents" in its place where these could not have certified anything.)

    "pays": certified, and the lower limit of a measured speed exceeds 1 + worth, or of a predicted one where
    the machine is not at hand. "does not pay": refuted, or the upper limit lies below 1 + worth. Else "too
    close to call".
    """
    if refuted or (speed is not None and speed.high is not None and speed.high < 1.0 + worth):
        return "does not pay"
    if not certified or speed is None or speed.low is None or speed.low <= 1.0 + worth:
        return "too close to call"
    return "pays" if speed.how == "measured" or not speed.at_hand else "too close to call"


def settle(verdict: Verdict, tuned: Tuned, measured: Speed | None = None) -> Verdict:
    """A replayed verdict with what was executed and timed: the tuner's answer at its floor, the stopwatch's.

    tuned: by execution (`offramp.tune` with a model). measured: of the tuned policy or of the open candidate
    (`open_candidate`), None if not timed.
    """
    certificate = tuned.certificate
    certified = certificate.executed and certificate.holds
    exits = tuned.policy_text != NEVER
    refuted = certificate.executed and not exits and _is_refuted(tuned)
    tried = None if refuted else open_candidate(tuned)
    speed = None
    if exits or tried is not None:
        speed = _predicted(tuned, tried) if measured is None else measured
    refuted |= certified and exits and tuned.policy.full_depth  # early exit adds nothing to the rest
    credit = None if speed is None else credited(verdict, speed)
    # Candidates after the open one are faster, and may yet be certified: its own speed refuses nothing then.
    fastest = credit if tried is None or tried == _boldest(tuned) else None
    decision = decide(worth=verdict.worth, speed=fastest, certified=certified, refuted=refuted)
    low = credit is None or (credit.how == "predicted" and credit.value < 1.0 + verdict.worth)
    if decision == "too close to call" and not exits and low and verdict.decision == "does not pay":
        decision = "does not pay"  # replay already says that nothing is worth it, before any drift
    if decision == "too close to call" and _too_few(tuned):
        decision = TOO_FEW
    settled = replace(
        verdict,
        decision=decision,
        policy=tuned.policy_text,
        kv=tuned.kv if exits else None,
        certificate=certificate,
        executed_agreement=tuned.executed_agreement,
        speed=speed,
        documents_needed=certificate.documents_needed,
        gain=tuned.gain if tried is None else None,
        tried=tried,
        credit=None if credit is None else Estimate(credit.value, credit.low, credit.high),
    )
    return replace(settled, reason=_reason(settled, tuned), missing=_missing(settled, tuned))


def settle_all(
    verdicts: Sequence[Verdict],
    tuned: Sequence[Tuned],
    measured: Callable[[Tuned], Speed | None] = lambda tuned: None,
) -> tuple[Verdict, ...]:
    """`settle` at every floor that the tuner answered. measured: what the stopwatch said of an answer."""
    by_floor = {one.floor.value: (one, measured(one)) for one in tuned}
    return tuple(settle(one, *by_floor[one.floor]) if one.floor in by_floor else one for one in verdicts)


def credited(verdict: Verdict, speed: Speed) -> Speed:
    """A speed over plain decoding as one over the fastest that leaves no layer out, as far as predicted."""
    net, credit = verdict.net_speedup.value, verdict.credit
    if verdict.without == NEVER or credit is None or credit.value is None or not net:
        return speed
    share = credit.value / net
    low, high = (None if limit is None else limit * share for limit in (speed.low, speed.high))
    return replace(speed, value=speed.value * share, low=low, high=high)


def open_candidate(tuned: Tuned) -> Candidate | None:
    """The candidate that was decoded on too few documents so far, None where something is certified."""
    if tuned.policy_text != NEVER:
        return None
    return next((one for one in tuned.candidates if one.documents and one.outcome == "time used up"), None)


def _too_few(tuned: Tuned) -> bool:
    """Whether the documents at hand, all of them, could not certify the floor even if none lost anything."""
    at_hand = tuned.provenance.get(AT_HAND, tuned.certificate.documents)
    return tuned.certificate.executed and at_hand < tuned.certificate.documents_needed


def _boldest(tuned: Tuned) -> Candidate | None:
    """The last candidate of the sequence, which is the fastest; drafts, which lose nothing, are none."""
    return next((one for one in reversed(tuned.candidates) if not one.lossless), None)


def _predicted(tuned: Tuned, tried: Candidate | None) -> Speed | None:
    """Of the candidate on the documents that proposed it, which is no interval; else of the tuned policy."""
    at_hand = tuned.machine == LOCAL
    if tried is not None:
        return Speed(tried.predicted_speed, None, None, "predicted", tuned.machine, at_hand)
    found = tuned.net_speedup
    if found.value is None:
        return None
    return Speed(found.value, found.low, found.high, "predicted", tuned.machine, at_hand)


def _is_refuted(tuned: Tuned) -> bool:
    """Whether enough documents showed that nothing faster keeps the floor, or there was nothing faster."""
    enough = tuned.certificate.documents >= tuned.certificate.documents_needed
    tested = [one for one in tuned.candidates if one.passed is not None and not one.lossless]
    if not enough or not tuned.documents.get("search"):
        return False
    if all(one.lossless for one in tuned.candidates):
        return True
    return any(one.passed is False and one.outcome != "time used up" for one in tested)


def _reason(verdict: Verdict, tuned: Tuned) -> str:
    """Why it was decided so: what is kept as executed, and the speed."""
    speed = verdict.speed
    tried = verdict.tried
    if speed is not None and tried is not None:
        what = f"{tried.policy} with keys and values by {tried.kv}"
        return f"{tuned.answer} What was tried, {what}, is {speed_words(speed, verdict.worth)}."
    if verdict.policy == NEVER or speed is None:
        return tuned.answer
    said = f"{kept_words(verdict)}; {speed_words(speed, verdict.worth)}."
    if tuned.policy.full_depth:
        return f"{said} It leaves no layer out: what it gains is the shorter output head's."
    credit = verdict.credit
    if verdict.without == NEVER or credit is None or credit.value is None:
        return said
    return f"{said} Over {CUT}, which needs no early exit, it is {credit.value:.3f} ×, and that decides."


def kept_words(verdict: Verdict) -> str:
    """ "keeps 96.2 % as executed (certified ≥ 95 %, 61 documents)", or how much is known."""
    certificate, tried, floor = verdict.certificate, verdict.tried, percent_down(verdict.floor)
    if certificate is None or not certificate.executed:
        replayed = verdict.agreement.value
        kept = "an unknown share" if replayed is None else percent_down(replayed)
        return f"keeps {kept} in replay (not executed)"
    if tried is not None and tried.executed is not None:
        kept = f"kept {percent_down(tried.executed)} as executed on {_documents(tried.documents)}"
        return f"{kept}, not certified ≥ {floor} yet"
    kept_share = None if verdict.kept is None else verdict.kept.value
    if kept_share is None:
        return f"is not certified to keep {floor}"
    fresh = verdict.kept == verdict.executed_agreement
    kept = f"{'keeps' if fresh else 'kept'} {percent_down(kept_share)} as executed"
    if not verdict.certified:
        return f"{kept} (not certified ≥ {floor})"
    return f"{kept} (certified ≥ {floor}, {_documents(certificate.stopped_after or 0)})"


def _documents(count: int) -> str:
    return f"{count:,} document{'' if count == 1 else 's'}"


def speed_words(speed: Speed, worth: float) -> str:
    """A speed with its interval, held against the worth."""
    how = "measured" if speed.how == "measured" else f"predicted on {speed.machine} at"
    said = f"{how} {speed.value:.3f} × the speed of plain decoding"
    if speed.low is None or speed.high is None:
        return f"{said}, without an interval"
    if speed.high > TOO_WIDE * speed.value or TOO_WIDE * speed.low < speed.value:
        return f"{said}, from too few prompts for an interval"
    low, high = 100 * (speed.low - 1.0), 100 * (speed.high - 1.0)
    return f"{said}, {low:+.1f} to {high:+.1f} %; more than {100 * worth:g} % counts as worth it"


def _missing(verdict: Verdict, tuned: Tuned) -> tuple[str, ...]:
    """What would settle it; nothing where it is settled."""
    if verdict.decision not in ("too close to call", TOO_FEW):
        return ()
    certificate, speed, found = tuned.certificate, verdict.speed, []
    if not certificate.executed:
        found.append("an executed certificate: offramp tune TRACE --floor agreement=" + f"{verdict.floor:g}")
    elif certificate.documents < certificate.documents_needed:
        where = "at hand to certify on" if _too_few(tuned) else "were allowed to be decoded"
        fix = "" if _too_few(tuned) else f"; offramp tune TRACE --floor agreement={verdict.floor:g} takes all"
        found.append(
            f"documents: {certificate.documents} {where}, {certificate.documents_needed} needed if none "
            f"loses{fix}"
        )
    elif not verdict.certified:
        found.append("time to decode the documents that are at hand")
    if speed is not None and (speed.how == "predicted" and speed.at_hand):
        tried = verdict.tried
        policy = "policy.json" if tried is None else f'"{tried.policy}" --kv {tried.kv}'
        found.append(f"a timing of this policy: offramp bench MODEL --policy {policy}")
    elif speed is not None and speed.low is not None and speed.high is not None:
        if _straddles(verdict):
            found.append(f"a narrower interval of the speed{_longer(speed, verdict.worth)}")
    elif speed is not None:
        found.append("an interval of the speed: more prompts or documents")
    return tuple(found)


def _straddles(verdict: Verdict) -> bool:
    """Whether the interval that decides lies on both sides of the worth."""
    limits = verdict.credit
    if limits is None or limits.low is None or limits.high is None:
        return True
    return limits.low <= 1.0 + verdict.worth <= limits.high


def _longer(speed: Speed, worth: float) -> str:
    """About how long a timing would take that settles on which side of the worth a speed lies."""
    assert speed.low is not None
    assert speed.high is not None
    half, distance = (speed.high - speed.low) / 2.0, abs(speed.value - 1.0 - worth)
    if speed.seconds is None or distance <= 0.0:
        return ""
    minutes = max(speed.seconds, speed.seconds * (half / distance) ** 2) / 60.0
    return ", less than a minute of timing" if minutes < 1.0 else f", some {minutes:.0f} minutes of timing"


def require_worth(worth: float) -> None:
    """Raise InputError for a worth that is no share, as 5 % given as 5 is none."""
    if not 0.0 <= worth < 1.0:
        share = f"{worth / 100:g} for {worth:g} %" if 1.0 <= worth < 100.0 else "0.05 for 5 %"
        raise InputError(
            f"a worth of {worth:g} is no share of the speed",
            where="worth= (--worth)",
            fix=f"give a share, 0 or more and less than 1: {share}",
        )


CUT = "the full model with its output head cut to the short list"


def percent_down(share: float) -> str:
    """A share in percent, rounded down, so that 98.999 % never reads as a floor of 99 % reached."""
    return f"{math.floor(share * 1e4 + 1e-6) / 100:g} %"
