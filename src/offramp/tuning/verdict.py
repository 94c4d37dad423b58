"""Whether early exit pays at a quality floor: one rule, for runs, tuning, predictions and studies alike."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from offramp.costs.machine import Machine
from offramp.errors import InputError
from offramp.policies.charging import prices_of
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.fixed import Never
from offramp.scoring.bootstrap import DOCUMENTS_NEEDED
from offramp.scoring.estimate import Estimate
from offramp.tracing.trace import Trace
from offramp.tuning import bounds
from offramp.tuning.halves import Halves, halves_of
from offramp.tuning.held_out import HeldOut, measure, speed_over
from offramp.tuning.losses import make_floor
from offramp.tuning.pool import Pool
from offramp.tuning.pricing import BYTES, Pricing, pricing_of
from offramp.tuning.results import Decision, Floor, Speed, Tuned, Verdict
from offramp.tuning.splits import split_documents

WORTH = 0.05
"""The gain in speed from which on early exit is worth its trouble."""

LOCAL = "local"
NEVER = "never"


def decide(*, worth: float, speed: Speed | None, certified: bool, refuted: bool) -> Decision:
    """The rule of the verdict, for one model, text, machine, batch size and floor.

    speed: of the fastest candidate that is certified, or may yet be; None without one. certified: whether its
    executed agreement is certified at the floor. refuted: whether nothing faster than plain decoding can be
    certified, although the documents would have sufficed.

    "pays": certified, and the lower limit of a measured speed exceeds 1 + worth, or of a predicted one where
    the machine is not at hand. "does not pay": refuted, or the upper limit lies below 1 + worth. Else "too
    close to call".
    """
    if refuted or (speed is not None and speed.high is not None and speed.high < 1.0 + worth):
        return "does not pay"
    if not certified or speed is None or speed.low is None or speed.low <= 1.0 + worth:
        return "too close to call"
    return "pays" if speed.how == "measured" or not speed.at_hand else "too close to call"


def judge(
    trace: Trace,
    floors: tuple[float, ...] = (0.99, 0.95, 0.90),
    worth: float = WORTH,
    delta: float = 0.1,
    seed: int = 0,
    machine: Machine | None = None,
    *,
    halves: Halves | None = None,
) -> tuple[Verdict, ...]:
    """What a trace alone says at each floor on agreement, at batch 1: seconds on a machine, else bytes moved.

    The policy is the fastest that `offramp.tuning.searching.search_pool` finds on one half of the documents
    (split by `seed`; halves: the trace's, if they were searched before); its replay is measured on the other,
    with 95 % bootstrap intervals over documents. It is credited only with what it adds to the fastest decoder
    at that floor which leaves no layer out: the full model, or the full model with its output head cut to the
    short list. A replay only proposes: by `decide` it can show that early
    exit does not pay, never that it pays; `settle` adds what was executed and measured.

    Raises InputError for a floor or delta outside (0, 1), a negative worth, or a trace without tokens.
    """
    for name, share in (*(("floor", floor) for floor in floors), ("delta", delta)):
        if not 0.0 < share < 1.0:
            raise InputError(f"a {name} of {share} is no share", fix="choose a number between 0 and 1")
    require_worth(worth)
    pricing = pricing_of(trace, machine)
    seed = seed if halves is None else halves.seed
    in_flops = Pricing(prices_of(trace).flops, "FLOPs", "counted from the model's shape, batch 1")
    fit, report = split_documents(trace, seed)
    documents = (len(fit), len(report))
    unjudged = _why_unjudged(trace, len(fit))
    if unjudged is not None:
        return tuple(_unjudged(trace, floor, worth, delta, unjudged, documents, pricing) for floor in floors)
    halves = halves or halves_of(trace, seed)
    verdicts = []
    for floor in floors:
        checked = make_floor({"agreement": floor})
        choice = choose(halves.searched(checked, pricing), checked)
        held = measure(halves.judging, choice.policy, pricing, checked, seed)
        verdicts.append(
            _replayed(
                floor, worth, delta, choice, held, pricing,
                flops=measure(halves.judging, choice.policy, in_flops, checked, seed).net_speedup,
                credit=speed_over(halves.judging, choice.policy, choice.without, pricing, seed),
                documents=documents,
            )
        )  # fmt: skip
    return tuple(verdicts)


def settle(verdict: Verdict, tuned: Tuned, measured: Speed | None = None) -> Verdict:
    """A verdict with what was executed and timed: the tuner's answer at its floor, and the stopwatch's.

    tuned: by execution (`offramp.tune` with a model). measured: of the tuned policy, None if not timed.
    """
    certificate = tuned.certificate
    certified = certificate.executed and certificate.holds
    exits = tuned.policy_text != NEVER
    speed = measured if exits and measured is not None else _predicted(tuned) if exits else None
    refuted = certificate.executed and not exits and _is_refuted(tuned)
    refuted |= certified and exits and tuned.policy.full_depth  # early exit adds nothing to the rest
    credit = None if speed is None else credited(verdict, speed)
    decision = decide(worth=verdict.worth, speed=credit, certified=certified, refuted=refuted)
    if decision == "too close to call" and not exits and verdict.decision == "does not pay":
        decision = "does not pay"  # nothing was executed, and replay already says that nothing is faster
    settled = replace(
        verdict,
        decision=decision,
        policy=tuned.policy_text,
        kv=tuned.kv if exits else None,
        certificate=certificate,
        executed_agreement=tuned.executed_agreement,
        speed=speed,
        documents_needed=certificate.documents_needed,
        gain=tuned.gain,
        credit=None if credit is None else Estimate(credit.value, credit.low, credit.high),
    )
    return replace(settled, reason=_reason(settled, tuned), missing=_missing(settled, tuned))


def credited(verdict: Verdict, speed: Speed) -> Speed:
    """A speed over plain decoding as one over the fastest that leaves no layer out, as far as predicted."""
    net, credit = verdict.net_speedup.value, verdict.credit
    if verdict.without == NEVER or credit is None or credit.value is None or not net:
        return speed
    share = credit.value / net
    low, high = (None if limit is None else limit * share for limit in (speed.low, speed.high))
    return replace(speed, value=speed.value * share, low=low, high=high)


def _predicted(tuned: Tuned) -> Speed | None:
    found = tuned.net_speedup
    if found.value is None:
        return None
    at_hand = tuned.machine == LOCAL
    return Speed(found.value, found.low, found.high, "predicted", tuned.machine, at_hand)


def _is_refuted(tuned: Tuned) -> bool:
    """Whether enough documents showed that nothing faster keeps the floor, or there was nothing faster."""
    enough = tuned.certificate.documents >= tuned.certificate.documents_needed
    tested = [one for one in tuned.candidates if one.passed is not None and one.kv != "speculate"]
    if not enough or not tuned.documents.get("search"):
        return False
    if not [one for one in tuned.candidates if one.kv != "speculate"]:
        return True
    return any(one.passed is False and one.outcome != "time used up" for one in tested)


def _reason(verdict: Verdict, tuned: Tuned) -> str:
    """Why it was decided so: what is kept as executed, and the speed."""
    speed = verdict.speed
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
    """What a policy keeps as executed: "keeps 96.2 % as executed (certified ≥ 95 %, 61 documents)"."""
    certificate, agreement = verdict.certificate, verdict.executed_agreement
    floor = percent_down(verdict.floor)
    if certificate is None or not certificate.executed:
        return f"nothing was executed at {floor}"
    if agreement is not None and agreement.value is not None:
        kept = f"keeps {percent_down(agreement.value)} as executed"
    elif certificate.empirical_risk is not None:
        kept = f"kept {percent_down(1.0 - certificate.empirical_risk)} as executed where it was certified"
    else:
        kept = f"is not shown to keep {floor} as executed"
    if not verdict.certified:
        return f"{kept} (not certified)"
    return f"{kept} (certified ≥ {floor}, {certificate.stopped_after} documents)"


def speed_words(speed: Speed, worth: float) -> str:
    """A speed with its interval, held against the worth."""
    how = "measured" if speed.how == "measured" else f"predicted on {speed.machine} at"
    said = f"{how} {speed.value:.3f} × the speed of plain decoding"
    if speed.low is None or speed.high is None:
        return f"{said}, without an interval"
    low, high = 100 * (speed.low - 1.0), 100 * (speed.high - 1.0)
    return f"{said}, {low:+.1f} to {high:+.1f} %; more than {100 * worth:g} % counts as worth it"


def _missing(verdict: Verdict, tuned: Tuned) -> tuple[str, ...]:
    """What would settle it; nothing where it is settled."""
    if verdict.decision != "too close to call":
        return ()
    certificate, speed, found = tuned.certificate, verdict.speed, []
    if not certificate.executed:
        found.append("an executed certificate: offramp tune TRACE --floor agreement=" + f"{verdict.floor:g}")
    elif certificate.documents < certificate.documents_needed:
        found.append(
            f"documents: {certificate.documents} at hand, {certificate.documents_needed} needed if none loses"
        )
    elif not verdict.certified:
        found.append("time to decode the documents that are at hand")
    if speed is not None and (speed.how == "predicted" and speed.at_hand):
        found.append("a timing of this policy: offramp bench MODEL --policy policy.json")
    elif speed is not None and speed.low is not None and speed.high is not None:
        found.append(f"a narrower interval of the speed{_longer(speed, verdict.worth)}")
    elif speed is not None:
        found.append("an interval of the speed: more prompts or documents")
    return tuple(found)


def _longer(speed: Speed, worth: float) -> str:
    """About how long a timing would take that settles on which side of the worth a speed lies."""
    assert speed.low is not None
    assert speed.high is not None
    half, distance = (speed.high - speed.low) / 2.0, abs(speed.value - 1.0 - worth)
    if speed.seconds is None or distance <= 0.0:
        return ""
    return f", some {max(speed.seconds, speed.seconds * (half / distance) ** 2) / 60.0:.0f} minutes of timing"


def documents_needed(floor: float, delta: float) -> int:
    """Documents without a loss that a certificate of this floor at risk `delta` needs at least.

    The smallest n with floor^n <= delta: ceil(ln delta / ln floor), 230 for 0.99 at 0.1.
    """
    return bounds.documents_needed(1.0 - floor, delta)


@dataclass(frozen=True)
class Choice:
    """What a search chose within a floor.

    policy: the fastest early exit, the full model if none beats what can be had without one; its mean loss is
    `risk`. without: the fastest policy that leaves no layer out: the full model, or its head cut to the short
    list.
    """

    policy: ExitPolicy
    risk: float
    without: ExitPolicy


def choose(pool: Pool, floor: Floor) -> Choice:
    """The fastest early exit of a search within a floor, credited only with what it adds to the rest."""
    without, cost = pool.fastest(floor.risk, full_depth=True), pool.pricing.plain
    cut = without is not None and without.cost < cost
    baseline: ExitPolicy = without.policy if without is not None and cut else Never()
    cost = without.cost if without is not None and cut else cost
    best = pool.fastest(floor.risk, full_depth=False)
    if best is None or best.cost >= cost:
        return Choice(Never(), 0.0, baseline)
    return Choice(best.policy, best.risk, baseline)


def decide_replayed(policy: ExitPolicy, speedup: Estimate, machine: str, worth: float) -> Decision:
    """The decision that a replay on unseen documents allows: it may refuse, and never promises.

    speedup: over the fastest decoder that leaves no layer out.
    """
    if isinstance(policy, Never):
        return "does not pay"
    speed = None if speedup.value is None else predicted_speed(speedup, machine)
    return decide(worth=worth, speed=speed, certified=False, refuted=False)


def predicted_speed(speedup: Estimate, machine: str) -> Speed:
    """A predicted net speedup, which must have a value."""
    assert speedup.value is not None
    return Speed(speedup.value, speedup.low, speedup.high, "predicted", machine, machine in (LOCAL, BYTES))


def require_worth(worth: float) -> None:
    """Raise InputError for a worth that is no gain."""
    if not (math.isfinite(worth) and worth >= 0.0):
        raise InputError(
            f"a worth of {worth} is no gain",
            where="--worth",
            fix="choose 0 or more; 0.05 asks for 5 % more speed",
        )


def _replayed(
    floor: float,
    worth: float,
    delta: float,
    choice: Choice,
    held: HeldOut,
    pricing: Pricing,
    *,
    flops: Estimate,
    credit: Estimate,
    documents: tuple[int, int],
) -> Verdict:
    decision = decide_replayed(choice.policy, credit, pricing.machine, worth)
    missing = () if decision == "does not pay" else (
        f"an executed certificate: offramp tune TRACE --floor agreement={floor:g}",
    )  # fmt: skip
    return Verdict(
        floor=floor,
        worth=worth,
        decision=decision,
        reason=_replay_reason(floor, worth, choice, held, credit, documents, pricing.machine),
        missing=missing,
        policy=str(choice.policy),
        kv=None,
        certificate=None,
        executed_agreement=None,
        speed=None if held.net_speedup.value is None else predicted_speed(held.net_speedup, pricing.machine),
        replayed_policy=str(choice.policy),
        agreement=held.agreement,
        skip_ratio=held.skip_ratio,
        net_speedup=held.net_speedup,
        net_speedup_flops=flops,
        fit_agreement=1.0 - choice.risk,
        fit_documents=documents[0],
        report_documents=documents[1],
        documents_needed=documents_needed(floor, delta),
        basis=pricing.machine,
        reference_agreement=held.reference_agreement,
        gain=held.gain,
        without=str(choice.without),
        credit=credit,
    )


CUT = "the full model with its output head cut to the short list"


def _replay_reason(
    floor: float,
    worth: float,
    choice: Choice,
    held: HeldOut,
    credit: Estimate,
    documents: tuple[int, int],
    basis: str,
) -> str:
    """Why a replay says so, in a few sentences."""
    cut = not isinstance(choice.without, Never)
    if isinstance(choice.policy, Never):
        few = f" So few documents say little: {DOCUMENTS_NEEDED} are needed for an interval."
        plain = CUT if cut else "the full model"
        better = f"moves fewer bytes than {plain}" if basis == BYTES else f"is faster than {plain} on {basis}"
        return (
            f"On {documents[0]} documents, no policy of any family that keeps {percent_down(floor)} "
            f"agreement in replay {better} once every probe is charged."
        ) + (few if documents[1] < DOCUMENTS_NEEDED else "")
    speedup, agreement = held.net_speedup, held.agreement
    unit = "in bytes moved" if basis == BYTES else f"in seconds on {basis}"
    said = f"Replayed on {documents[1]} unseen documents"
    if speedup.value is not None:
        said += f", predicted net speedup {unit} {speedup.value:.3f}"
    if speedup.low is not None and speedup.high is not None:
        said += f" (95 % interval {speedup.low:.3f} to {speedup.high:.3f}"
        said += ")" if cut else f"; worth it above {1 + worth:.2f})"
    else:
        said += f", without an interval: {speedup.no_interval or speedup.undefined or 'too few documents'}"
    if cut and credit.value is not None and credit.low is not None:
        said += f"; over {CUT} {credit.value:.3f} ({credit.low:.3f} to {credit.high:.3f}; worth it above "
        said += f"{1 + worth:.2f})"
    kept = "" if agreement.value is None else f"; agreement {percent_down(agreement.value)}"
    return f"{said}{kept}. Nothing was executed: decoding may keep less."


def percent_down(share: float) -> str:
    """A share in percent, rounded down, so that 98.999 % never reads as a floor of 99 % reached."""
    return f"{math.floor(share * 1e4 + 1e-6) / 100:g} %"


def _why_unjudged(trace: Trace, fit_documents: int) -> str | None:
    """Why no policy can be chosen and judged on this trace, None if one can."""
    if not fit_documents:
        return "one document cannot both choose a policy and judge it; trace at least 40"
    if len(trace.exits) == 1 and trace.layers > 1:
        return "no exit before the last was traced, so no policy could be replayed; trace more exits"
    return None


def _unjudged(
    trace: Trace,
    floor: float,
    worth: float,
    delta: float,
    why: str,
    documents: tuple[int, int],
    pricing: Pricing,
) -> Verdict:
    """The answer for a trace on which nothing can be judged."""
    undefined = Estimate(None, undefined=why)
    return Verdict(
        floor=floor,
        worth=worth,
        decision="too close to call",
        reason=f"Nothing was judged: {why}.",
        missing=(why,),
        policy=NEVER,
        kv=None,
        certificate=None,
        executed_agreement=None,
        speed=None,
        replayed_policy=NEVER,
        agreement=undefined,
        skip_ratio=undefined,
        net_speedup=undefined,
        net_speedup_flops=undefined,
        fit_agreement=math.nan,
        fit_documents=documents[0],
        report_documents=documents[1],
        documents_needed=documents_needed(floor, delta),
        basis=pricing.machine,
        reference_agreement=None if trace.reference_top1 is None else undefined,
    )
