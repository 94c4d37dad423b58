"""The words of a verdict and of a certificate: answers, reasons, what is missing, in plain sentences."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from offramp.defaults import BYTES, WORTH
from offramp.policies.figures import NEVER, PLAIN_DECODING
from offramp.policies.short_names import SHORT_HEAD, short_name
from offramp.policies.whole_request import How, WholeRequest
from offramp.scoring.estimate import DOCUMENTS_NEEDED, Estimate
from offramp.tuning.bounds import OUT_OF_TIME, documents_for
from offramp.tuning.certificate import Candidate, Certificate
from offramp.tuning.floor import NATS, REFERENCE, Floor, loss_text
from offramp.tuning.held_out import HeldOut
from offramp.tuning.splits import fewest_documents
from offramp.tuning.tuned import Grounds, Tuned, faster_lossless

if TYPE_CHECKING:
    from offramp.tuning.job import TuningJob
    from offramp.tuning.verdict import Speed, Verdict

ALONE = "agreement and skip of each token alone; in lockstep tokens leave later"
"""What is searched and certified at a batch above 1."""

ANSWER_TOKENS = 64
"""Tokens of the answer that a floor on agreement is translated to."""

STAYS = "The full model stays."
GOES_ON = "given more time, the same command goes on from there"
ORIGINAL_STAYS = "Only the original model is known to keep that floor."

REPLAY_BOUND = (
    "This is a replay bound: nothing was decoded, and in decoding, where later tokens read the keys and "
    "values that the policy leaves, less may be kept."
)


def replayed_answer(job: TuningJob, candidates: int, certificate: Certificate, held: HeldOut) -> str:
    """What came out of a replay bound, and why.

    candidates: policies that were to be tested. held: what was chosen, on the report documents.
    """
    if not held.plain:
        executed = "" if job.floor.clip is None else " Only a floor on agreement is executed."
        return f"{_bounded(job, certificate, held)} {REPLAY_BOUND}{executed}"
    documents = job.roles.counts()
    if refused := job.refusal(None):
        return f"{refused} {STAYS}"
    if certificate.documents < certificate.documents_needed or not documents["search"]:
        said = _too_few_traced(certificate, documents)
    elif not candidates:
        said = _nothing_faster(job, "in replay")
    else:
        said = (
            f"not certifiable: none of {candidates} faster policies passed the test of {job.floor} on "
            f"{certificate.documents} documents{certificate.of_tokens}, in replay; the full model stays."
        )
    return said + _transform_cost(job.floor, held)


def executed_answer(
    job: TuningJob,
    certificate: Certificate,
    held: HeldOut,
    candidates: Sequence[Candidate],
    grounds: Grounds,
    agreement: Estimate | None,
) -> str:
    """What came out of decoding, and why.

    candidates: in the order of the tests, the full model first where it was tested, the lossless one last.
    agreement: executed, of the floor's kind, on documents that chose nothing.
    """
    if refused := job.refusal(grounds.worth):
        return f"{refused} {STAYS}"
    alone = next((candidate for candidate in candidates if candidate.policy == PLAIN_DECODING), None)
    exits = [candidate for candidate in candidates if candidate is not alone and not candidate.lossless]
    if alone is not None and not alone.passed:
        said = _full_model_fails(job, certificate, alone)
    elif held.plain:
        said = _not_certified(job, certificate, exits, grounds)
        if alone is None:
            said += _transform_cost(job.floor, held)
        else:
            said = f"{_certified(job, certificate, held, agreement)} {said}"
    else:
        said = _certified(job, certificate, held, agreement)
    contender = faster_lossless(candidates, held.net_speedup)
    if contender is None:
        return said
    lost = "anything" if alone is None else "any more than it does"
    machine = job.pricing.machine
    unit = "fewer bytes moved" if machine == BYTES else f"as fast, predicted on {machine}"
    drafts = f"{contender.kv} with {contender.policy} as drafts"
    faster = f"{drafts}, {contender.predicted_speed:.3f} times {unit}, without losing {lost}"
    if held.plain:
        return f"{said} Faster is {faster}."
    # What is certified is named second where something that loses nothing takes fewer seconds.
    return f"The fastest is {faster}. The fastest that may lose something and is certified: {said}"


def _certified(job: TuningJob, certificate: Certificate, held: HeldOut, agreement: Estimate | None) -> str:
    """The policy that passed, or the full model against a reference, what it keeps and how fast it is."""
    kept = f"at least {100 * job.floor.value:g} % of the tokens it generates are the {_judge(job.floor)} "
    kept += "model's choice on the same prefix"
    how = f"{certificate.stopped_after} documents{certificate.of_tokens}"
    exits = not held.plain
    what = f"{held.policy}, keys and values by {certificate.kv}" if exits else "the full model"
    comma = "," if exits else ""
    if not certificate.holds:
        said = f"{what}{comma} kept {job.floor} on {how}, executed, without a guarantee"
    elif certificate.delta is None:
        said = f"{what}: on {how}, executed, {kept}, on average over draws of documents like these"
    else:
        said = (
            f"{what}{comma} is certified after {how}: {kept} (with probability {1.0 - certificate.delta:g} "
            "over the documents drawn), on average over documents like these"
        )
    if agreement is not None and agreement.value is not None:
        kind = job.floor.kind.replace("_", " ")
        said += f"; executed {kind} {_share(agreement)} on documents that chose nothing"
    return f"{said}{_gain(job, held) if exits else ''}."


def _full_model_fails(job: TuningJob, certificate: Certificate, alone: Candidate) -> str:
    """What the full model itself loses against a reference, where no exit was tried."""
    after = f"after {alone.documents} documents{certificate.of_tokens}{_kept_so_far(alone)}"
    if alone.outcome == OUT_OF_TIME:
        return (
            "inconclusive: the time was used up by the test of the full model itself, without any exit, "
            f"{after}; {GOES_ON}. {ORIGINAL_STAYS}"
        )
    below = alone.executed is not None and alone.executed < job.floor.value
    fails = "is below" if below else "did not pass the test of"
    return (
        f"not certified: the full model by itself, without any exit, {fails} {job.floor} ({alone.outcome} "
        f"{after}); no exit was tried. {ORIGINAL_STAYS}"
    )


def _not_certified(
    job: TuningJob, certificate: Certificate, candidates: Sequence[Candidate], grounds: Grounds
) -> str:
    """Why the full model stays."""
    documents, needed = certificate.documents, certificate.documents_needed
    last = next((candidate for candidate in reversed(candidates) if candidate.documents), None)
    if not job.roles.counts()["search"]:
        return f"not certifiable: no document is left to search on; trace at least 3. {STAYS}"
    match grounds.standing:
        case "nothing could pay":
            return _nothing_could_pay(job, grounds)
        case "nothing faster":
            return _nothing_faster(job, "as rerun")
        case "refuted":
            assert last is not None
            return f"not certified: {_lost(job, last)}. {STAYS}"
    if documents < needed:
        why = (
            "as many as were allowed"
            if documents < grounds.at_hand
            else f"at hand to certify on{grounds.left_out and '; ' + grounds.left_out}"
        )
        tried = f" {_kept(last)}." if last is not None else ""
        return (
            f"not certifiable: {documents} documents, {needed} needed ({why}).{tried} "
            f"{'Allow more' if documents < grounds.at_hand else 'Choose a workload of more documents'}, or "
            f"a looser floor. {STAYS}"
        )
    if last is None:
        return (
            f"inconclusive: the time was used up before anything with exits was decoded; {GOES_ON}. {STAYS}"
        )
    if last.outcome != OUT_OF_TIME:
        return (
            f"not certified: {last.policy} with keys and values by {last.kv} did not pass the test of "
            f"{job.floor} ({last.outcome} after {last.documents} documents{_kept_so_far(last)}). {STAYS}"
        )
    return (
        f"inconclusive: the time was used up after {last.documents} documents of {last.policy}, one of "
        f"{len(candidates)} candidates{_kept_so_far(last)}; {GOES_ON}. {STAYS}"
    )


def _lost(job: TuningJob, candidate: Candidate) -> str:
    """What a candidate kept that did not keep the floor."""
    what = f"{candidate.policy} with keys and values by {candidate.kv}"
    return f"{what} did not pass the test of {job.floor}: it {_kept(candidate)}"


def _kept(candidate: Candidate) -> str:
    assert candidate.executed is not None
    return f"kept {100 * candidate.executed:.1f} % as executed on {candidate.documents} documents"


def _nothing_could_pay(job: TuningJob, grounds: Grounds) -> str:
    """No policy at all could gain what is worth it, whatever it loses."""
    assert grounds.worth is not None
    said = "nothing that keeps the floor is faster"
    if grounds.reach is not None:
        searched = job.roles.counts()["search"]
        reach = grounds.reach if job.request is None else job.request.speed(grounds.reach)
        said = f"the fastest that keeps {job.floor} on {searched} documents is {reach:.3f} ×"
        said += "" if job.request is None else f" for a whole request, {grounds.reach:.3f} × in decoding"
    over = "the best decoder without exits"
    if grounds.baseline != NEVER:
        over = f"{without_words(grounds.baseline)}, {baseline_words(1.0 / grounds.without)}"
        over += f" (it kept {percent_down(grounds.baseline_kept)})"
    return (
        f"Nothing that was searched could gain {100 * grounds.worth:g} % over {over}"
        f": none is predicted to gain four fifths of that on {job.pricing.machine}; {said}. {STAYS}"
    )


def _kept_so_far(candidate: Candidate) -> str:
    executed = candidate.executed
    return "" if executed is None else f", where it kept {100 * executed:.1f} %"


def _nothing_faster(job: TuningJob, how: str) -> str:
    machine = job.pricing.machine
    better = "moves fewer bytes" if machine == BYTES else f"is faster on {machine}"
    return (
        f"Nothing beats the full model here: on {job.roles.counts()['search']} documents, no policy that "
        f"keeps {job.floor} {how} {better} once every probe is charged."
    )


def _transform_cost(floor: Floor, held: HeldOut) -> str:
    """What the full model itself keeps of a floor against another model; nothing for other floors."""
    if floor.kind != REFERENCE or held.quality.value is None:
        return ""
    return f" It agrees with the original one on {100 * held.quality.value:.1f} % of the tokens."


def _too_few_traced(certificate: Certificate, documents: dict[str, int]) -> str:
    certify, needed, fitted = certificate.documents, certificate.documents_needed, documents["heads"]
    usable = sum(documents.values()) - fitted
    heads = f", {fitted} more fitted the exit heads" if fitted else ""
    these = f" (these are documents{certificate.of_tokens})" if certificate.of_tokens else ""
    if certify < needed:
        said = f"{certify} documents, {needed} needed (left to certify, of {usable} traced{heads})"
    else:
        said = f"no document is left to search on (of {usable} traced{heads})"
    return (
        f"not certifiable: {said}; trace at least {fewest_documents(needed) + fitted} in all{these}. "
        "The full model stays."
    )


def _bounded(job: TuningJob, certificate: Certificate, held: HeldOut) -> str:
    policy, gain = held.policy, _gain(job, held)
    if job.pricing.batch > 1:
        gain += f". What is tested is {ALONE}"
    if not certificate.holds:
        on = f"on {certificate.documents} documents{certificate.of_tokens}"
        return f"{policy} kept {job.floor} {on}, without a guarantee{gain}."
    documents = f"documents{certificate.of_tokens} like these"
    if certificate.delta is None:
        return f"{policy} keeps {job.floor} on average over draws of {documents}{gain}."
    return (
        f"{policy} keeps its floor in replay (with probability {1.0 - certificate.delta:g} over the "
        f"documents drawn): on average over {documents}, {_stated(job.floor)}{gain}."
    )


def _gain(job: TuningJob, held: HeldOut) -> str:
    speedup, batch = held.net_speedup.value, job.pricing.batch
    where = f"{job.pricing.machine}, lockstep at batch {batch}" if batch > 1 else job.pricing.machine
    return "" if speedup is None else f"; {speedup:.3f} times as fast as the full model, predicted ({where})"


def _share(agreement: Estimate) -> str:
    assert agreement.value is not None
    said = f"{100 * agreement.value:.1f} %"
    if agreement.low is None or agreement.high is None:
        return said
    return f"{said} ({100 * agreement.low:.1f} to {100 * agreement.high:.1f})"


def _stated(floor: Floor) -> str:
    """What a replay bound states."""
    if floor.clip is None:
        return f"at least {100 * floor.value:g} % of the tokens agree with the {_judge(floor)} model"
    return f"the {NATS[floor.kind]} is at most {loss_text(floor, floor.risk)}"


def _judge(floor: Floor) -> str:
    """Which model's choices a floor on a share of tokens counts."""
    return "original full" if floor.kind == REFERENCE else "full"


def meaning_of(floor: Floor) -> str:
    """What a floor means for an answer, in words."""
    if floor.clip is None:
        same = floor.value**ANSWER_TOKENS
        return (
            f"{floor.value:g}^{ANSWER_TOKENS} = {100 * same:.2g} % of {ANSWER_TOKENS}-token answers "
            "unchanged, if tokens differ independently"
        )
    total = floor.value * ANSWER_TOKENS
    return (
        f"an answer of {ANSWER_TOKENS} tokens may lose {total:.3g} nats of clipped loss on average; what a "
        f"token loses beyond {floor.clip:g} nats is not bounded"
    )


# Of a request with a source, before anything is searched.

KNOWN_HOW: Mapping[How, str] = {
    "timed": "as timed on this machine",
    "derived": "derived by FLOPs from the times of the decoder's layers",
    "counted": "by its weights, which is the least that it takes",
}


def ceiling_words(request: WholeRequest) -> str:
    """What exits could bring a request at most, and why."""
    where = "in bytes moved" if request.machine == BYTES else f"on {request.machine}"
    return (
        f"a whole request could become at most {request.ceiling:.3f} × as fast ({where}), if all its "
        f"{request.tokens:,.1f} tokens left at exit {request.exit}, half-way, with checks and repairs of K "
        f"and V for nothing: {100 * request.once_share:.1f} % of it are over before its first token, which "
        f"no exit changes ({KNOWN_HOW[request.how]})"
    )


def refusal_words(request: WholeRequest | None, worth: float) -> str:
    """Why nothing is searched; "" where something may pay."""
    if request is None or not request.refuses(worth):
        return ""
    return f"Early exit does not pay here: {ceiling_words(request)}. Nothing was searched."


def ceiling_line(request: WholeRequest, worth: float = WORTH) -> str:
    """What is said of a request before all else."""
    return refusal_words(request, worth) or f"At best, {ceiling_words(request)}."


# Of a text, before anything is run.


def certifiable_words(documents: int, floors: Sequence[float], delta: float) -> str:
    """Which floors on agreement so many documents could certify, to follow their number and whose they are.

    "can at best certify 90 % (25 needed), never 95 % (48 needed) or 99 % (234)".
    """
    could = [floor for floor in floors if documents >= documents_for(floor, delta)]
    never = [floor for floor in floors if floor not in could]
    if not could:
        return f"can never certify {_floors_listed(never, delta, 'or')}"
    beyond = f", never {_floors_listed(never, delta, 'or')}" if never else ""
    return f"can at best certify {_floors_listed(could, delta, 'and')}{beyond}"


def _floors_listed(floors: Sequence[float], delta: float, joined: str) -> str:
    """ "90 % (25 needed), 95 % (48) and 99 % (232)", the loosest first."""
    said = [
        f"{100 * floor:g} % ({documents_for(floor, delta):,}{' needed' if place == 0 else ''})"
        for place, floor in enumerate(sorted(floors))
    ]
    return said[0] if len(said) == 1 else f"{', '.join(said[:-1])} {joined} {said[-1]}"


# Of a verdict.

TOO_WIDE = 1.5
"""An interval that reaches so many times above a speed, or below, only says that samples are few."""

CUT = "the full model with its output head cut to the short list"


def percent_down(share: float) -> str:
    """A share in percent, rounded down, so that 98.999 % never reads as a floor of 99 % reached."""
    return f"{math.floor(share * 1e4 + 1e-6) / 100:g} %"


def replay_reason(verdict: Verdict) -> str:
    """Why a replay says so, in a few sentences."""
    cut, basis, worth_it = verdict.without != NEVER, verdict.basis, 1 + verdict.worth
    if verdict.policy == PLAIN_DECODING:
        few = f" So few documents say little: {DOCUMENTS_NEEDED} are needed for an interval."
        plain = CUT if cut else "the full model"
        better = f"moves fewer bytes than {plain}" if basis == BYTES else f"is faster than {plain} on {basis}"
        return (
            f"On {verdict.fit_documents} documents, no policy of any family that keeps "
            f"{percent_down(verdict.floor)} agreement in replay {better} once every probe is charged."
        ) + (few if verdict.report_documents < DOCUMENTS_NEEDED else "")
    speedup, agreement, credit = verdict.net_speedup, verdict.agreement, verdict.credit
    unit = "in bytes moved" if basis == BYTES else f"in seconds on {basis}"
    said = f"Replayed on {verdict.report_documents} unseen documents"
    if speedup.value is not None:
        said += f", predicted net speedup {unit} {speedup.value:.3f}"
    if speedup.low is not None and speedup.high is not None:
        said += f" (95 % interval {speedup.low:.3f} to {speedup.high:.3f}"
        decoding = verdict.worth if verdict.request is None else verdict.request.needed(verdict.worth)
        said += ")" if cut else f"; worth it above {1 + decoding:.2f})"
    else:
        said += f", without an interval: {speedup.no_interval or speedup.undefined or 'too few documents'}"
    if cut and credit is not None and credit.value is not None and credit.low is not None:
        said += f"; over {CUT} {credit.value:.3f} ({credit.low:.3f} to {credit.high:.3f}; worth it above "
        said += f"{worth_it:.2f})"
    kept = "" if agreement.value is None else f"; agreement {percent_down(agreement.value)}"
    if verdict.request is not None and verdict.speed is not None:
        kept += f"; a whole request is {verdict.speed.value:.3f} × as fast"
    return f"{said}{kept}. Nothing was executed: decoding may keep less."


def settled_reason(verdict: Verdict, tuned: Tuned) -> str:
    """Why it was decided so: what is kept as executed, and the speed."""
    speed, tried = verdict.speed, verdict.tried
    if speed is not None and tried is not None:
        what = f"{tried.policy} with keys and values by {tried.kv}"
        fast = f"{speed_words(speed, verdict.decoding)}{credit_words(verdict)}"
        return f"{tuned.answer} What was tried, {what}, is {fast}."
    if verdict.policy == PLAIN_DECODING or speed is None:
        return tuned.answer
    said = f"{kept_words(verdict)}; {speed_words(speed, verdict.decoding)}{credit_words(verdict)}."
    if tuned.policy.full_depth:
        return f"{said} It leaves no layer out: what it gains is the shorter output head's."
    return said


def credit_words(verdict: Verdict) -> str:
    """ "; 0.962 × (0.930 to 0.994) the speed of prompt lookup, ..."; "" where plain decoding is the best."""
    credit, speed = verdict.credit, verdict.speed
    if credit is None or credit.value is None or verdict.without == NEVER or speed is None:
        return ""
    if credit.value == speed.value:
        return ""
    limits = "" if credit.low is None or credit.high is None else f" ({credit.low:.3f} to {credit.high:.3f})"
    return (
        f"; {credit.value:.3f} ×{limits} the speed of {without_words(verdict.without)}, which needs no exits"
    )


def without_words(name: str) -> str:
    """A decoder without exits as it stands in a sentence."""
    if name == NEVER:
        return "plain decoding"
    known = short_name(name)
    return CUT if known == SHORT_HEAD else known


def baseline_words(speed: float) -> str:
    """What a baseline without exits gains."""
    return f"which is {speed:.3f} × as fast as plain decoding"


def kept_words(verdict: Verdict) -> str:
    """ "keeps 96.2 % as executed (certified ≥ 95 %, 61 documents)", or how much is known."""
    certificate, tried, floor = verdict.certificate, verdict.tried, percent_down(verdict.floor)
    if certificate is None or not certificate.executed:
        replayed = verdict.agreement.value
        kept = "an unknown share" if replayed is None else percent_down(replayed)
        return f"keeps {kept} in replay (not executed)"
    if tried is not None and tried.executed is not None:
        kept = f"kept {percent_down(tried.executed)} as executed on {_documents(tried.documents)}"
        return f"{kept}, {'below' if tried.executed < verdict.floor else 'not certified ≥'} {floor}"
    kept_share = None if verdict.kept is None else verdict.kept.value
    if kept_share is None:
        return "was not decoded"
    fresh = verdict.kept == verdict.executed_agreement
    kept = f"{'keeps' if fresh else 'kept'} {percent_down(kept_share)} as executed"
    if not verdict.certified:
        return f"{kept} (not certified ≥ {floor})"
    return f"{kept} (certified ≥ {floor}, {_documents(certificate.stopped_after or 0)})"


def _documents(count: int) -> str:
    return f"{count:,} document{'' if count == 1 else 's'}"


def speed_words(speed: Speed, decoding: Speed | None = None) -> str:
    """A speed with its interval. decoding: beside that of whole requests."""
    if decoding is not None:
        whole = speed_words(speed).replace("plain decoding", "a plain request")
        return f"{whole}, and its decoding alone {speed_words(decoding)}"
    how = "measured" if speed.how == "measured" else f"predicted on {speed.machine} at"
    said = f"{how} {speed.value:.3f} × the speed of plain decoding"
    if speed.low is None or speed.high is None:
        return f"{said}, without an interval"
    if speed.high > TOO_WIDE * speed.value or TOO_WIDE * speed.low < speed.value:
        return f"{said}, from too few prompts for an interval"
    return f"{said} ({speed.low:.3f} to {speed.high:.3f})"


NOT_EXECUTED = "decoding documents: nothing was executed"
"""What a verdict by replay alone lacks."""


def missing_of(verdict: Verdict, tuned: Tuned) -> tuple[str, ...]:
    """What would settle a verdict that is open."""
    certificate, speed = tuned.certificate, verdict.speed
    missing = []
    if not certificate.executed:
        missing.append(NOT_EXECUTED)
    elif certificate.documents < certificate.documents_needed:
        at_hand = tuned.grounds is None or certificate.documents == tuned.grounds.at_hand
        where = "at hand to certify on" if at_hand else "were allowed to be decoded"
        needed = f"{certificate.documents_needed} needed if none loses"
        more = f", trace at least {tuned.documents_in_all} in all" if at_hand else ""
        missing.append(f"documents: {certificate.documents} {where}, {needed}{more}")
    elif verdict.standing == "too few documents" or _allowed_too_few(verdict, tuned):
        missing.append(f"more documents: {_decoded_of(verdict, tuned)}")
    elif not verdict.certified:
        so_far = f", {_documents(verdict.tried.documents)} so far" if verdict.tried is not None else ""
        missing.append(f"time to decode the documents that are at hand{so_far}")
    elif tuned.bolder_open:
        missing.append("time to test a bolder candidate")
    if speed is not None and speed.how == "predicted" and speed.at_hand:
        missing.append("a timing of this policy")
    elif speed is not None and speed.how == "measured":
        if verdict.request is not None and verdict.request.how == "counted":
            missing.append("a timing of the encoder on a quiet machine: offramp hardware measure")
        elif verdict.credit is not None and verdict.credit.low is None and verdict.certified:
            missing.append("the best decoder without exits, timed in the same turns")
        elif _straddles(verdict):
            missing.append(f"a narrower interval of the speed{_longer(verdict, speed)}")
    return tuple(missing)


def _allowed_too_few(verdict: Verdict, tuned: Tuned) -> bool:
    """Whether a candidate was tested on all documents that were allowed, and not on all at hand."""
    tried, grounds = verdict.tried, tuned.grounds
    limited = grounds is not None and tuned.certificate.documents < grounds.at_hand
    return limited and tried is not None and tried.passed is False and tried.outcome != OUT_OF_TIME


def _decoded_of(verdict: Verdict, tuned: Tuned) -> str:
    """How many documents leave a floor open, of those at hand."""
    tried, planned = verdict.tried, tuned.certificate.documents
    if _allowed_too_few(verdict, tuned):
        return f"{planned} were allowed to be decoded, and leave it open"
    if tried is not None and tried.documents < planned:
        return (
            f"{tried.documents} leave it open, and the others of the {planned} at hand could not certify it"
        )
    return f"all {planned} at hand were decoded, and leave it open"


def _straddles(verdict: Verdict) -> bool:
    """Whether the interval that decides lies on both sides of the worth."""
    limits = verdict.credit
    if limits is None or limits.low is None or limits.high is None:
        return False
    return limits.low <= 1.0 + verdict.worth <= limits.high


MOST_MINUTES = 60.0
"""An estimate of more minutes of timing is none: noise that large is not averaged out."""


def _longer(verdict: Verdict, speed: Speed) -> str:
    """About how long a timing would take that settles on which side of the worth the credit lies."""
    credit = verdict.credit
    if credit is None or credit.value is None or credit.low is None or credit.high is None:
        return ""
    if speed.seconds is None:
        return ""
    half, distance = (credit.high - credit.low) / 2.0, abs(credit.value - 1.0 - verdict.worth)
    seconds = math.inf if distance <= 0.0 else max(speed.seconds, speed.seconds * (half / distance) ** 2)
    if seconds > 60.0 * MOST_MINUTES:
        return ", more than an hour of timing"
    return ", less than a minute of timing" if seconds < 60.0 else f", some {seconds / 60:.0f} min of timing"


CONTRADICTED = "more documents: its answers to the timed prompts are below the floor"
"""What is missing where decoding contradicts a certificate."""
