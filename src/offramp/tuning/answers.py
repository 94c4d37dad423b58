"""The tuner's answer in plain sentences."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.fixed import Never
from offramp.scoring.estimate import Estimate
from offramp.tuning.certificate import Candidate, Certificate
from offramp.tuning.floor import NATS, Floor, loss_text
from offramp.tuning.held_out import HeldOut
from offramp.tuning.job import Job
from offramp.tuning.pricing import BYTES
from offramp.tuning.splits import fewest_documents

ALONE = "agreement and skip of each token alone; in lockstep tokens leave later"
"""What is searched and certified at a batch above 1."""

ANSWER_TOKENS = 64
"""Tokens of the answer that a floor on agreement is translated to."""

STAYS = "The full model stays."

NOT_EXECUTED = (
    "This is a replay bound: nothing was decoded, and in decoding, where later tokens read the keys and "
    "values that the policy leaves, less may be kept."
)


@dataclass(frozen=True)
class Decoded:
    """What the answer says of what was decoded.

    limited: whether fewer documents were allowed than are at hand. left_out: documents without a prompt, in
    words. candidates: in the order of the tests. contender: the lossless one, by price. agreement: executed,
    on documents that chose nothing. out_of_time: whether the time was used up.
    """

    limited: bool
    left_out: str
    candidates: tuple[Candidate, ...]
    contender: Candidate | None
    agreement: Estimate | None
    out_of_time: bool


def replayed_answer(
    job: Job, candidates: int, certificate: Certificate, policy: ExitPolicy, held: HeldOut
) -> str:
    """What came out of a replay bound, and why.

    candidates: policies that were to be tested. held: the policy on the report documents.
    """
    if not isinstance(policy, Never):
        return f"{_bounded(job, certificate, policy, held)} {_not_executed(job.floor)}"
    documents = job.roles.counts()
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
    job: Job, certificate: Certificate, policy: ExitPolicy, held: HeldOut, decoded: Decoded
) -> str:
    """What came out of decoding, and why."""
    if isinstance(policy, Never):
        said = _not_certified(job, certificate, decoded)
    else:
        said = _certified(job, certificate, policy, held, decoded)
    contender = decoded.contender
    if contender is not None and contender.predicted_speed > max(1.0, held.net_speedup.value or 1.0):
        said += (
            f" Without losing anything {contender.kv} with {contender.policy} as drafts is predicted to be "
            f"{contender.predicted_speed:.3f} times as fast."
        )
    return said


def _certified(
    job: Job, certificate: Certificate, policy: ExitPolicy, held: HeldOut, decoded: Decoded
) -> str:
    """The policy that passed, what it keeps and how fast it is."""
    kept = f"at least {100 * job.floor.value:g} % of the tokens it generates are the full model's choice on "
    kept += "the same prefix"
    how = f"{certificate.stopped_after} documents{certificate.of_tokens}"
    kv = f"keys and values by {certificate.kv}"
    if not certificate.holds:
        said = f"{policy}, {kv}, kept {job.floor} on {how}, executed, without a guarantee"
    elif certificate.delta is None:
        said = f"{policy}, {kv}: on {how}, executed, {kept}, on average over draws of documents like these"
    else:
        said = (
            f"{policy}, {kv}, is certified after {how}: {kept} (with probability {1.0 - certificate.delta:g} "
            "over the documents drawn), on average over documents like these"
        )
    agreement = decoded.agreement
    if agreement is not None and agreement.value is not None:
        said += f"; executed agreement {_share(agreement)} on documents that chose nothing"
    return f"{said}{_gain(job, held)}."


def _not_certified(job: Job, certificate: Certificate, decoded: Decoded) -> str:
    """Why the full model stays."""
    documents, needed = certificate.documents, certificate.documents_needed
    if documents < needed:
        why = (
            "as many as were allowed"
            if decoded.limited
            else f"at hand to certify on{decoded.left_out and '; ' + decoded.left_out}"
        )
        fix = "allow more" if decoded.limited else "choose a workload of more documents, or a looser floor"
        return f"not certifiable: {documents} documents, {needed} needed ({why}); {fix}. {STAYS}"
    if not job.roles.counts()["search"]:
        return f"not certifiable: no document is left to search on; trace at least 3. {STAYS}"
    if not decoded.candidates:
        if decoded.out_of_time:
            return f"not settled: the time was used up before anything could be decoded. {STAYS}"
        return _nothing_faster(job, "as rerun")
    last = [one for one in decoded.candidates if one.passed is not None][-1:]
    if not last or last[0].outcome == "time used up":
        count = last[0].documents if last else 0
        kept = _kept_so_far(last[0]) if last else ""
        return (
            f"not settled: the time was used up after {count} documents of the first of "
            f"{len(decoded.candidates)} candidates{kept}; what was decoded is kept, and the same command "
            f"goes on from there. {STAYS}"
        )
    return (
        f"not certified: the most cautious of {len(decoded.candidates)} faster candidates, "
        f"{last[0].policy} with keys and values by {last[0].kv}, did not pass the test of {job.floor} "
        f"({last[0].outcome} after {last[0].documents} documents{_kept_so_far(last[0])}). {STAYS}"
    )


def _kept_so_far(candidate: Candidate) -> str:
    executed = candidate.executed
    return "" if executed is None else f", where it kept {100 * executed:.1f} %"


def _nothing_faster(job: Job, how: str) -> str:
    machine = job.pricing.machine
    better = "moves fewer bytes" if machine == BYTES else f"is faster on {machine}"
    return (
        f"Nothing beats the full model here: on {job.roles.counts()['search']} documents, no policy that "
        f"keeps {job.floor} {how} {better} once every probe is charged."
    )


def _transform_cost(floor: Floor, held: HeldOut) -> str:
    """What the transform alone loses of a floor against the untransformed model; nothing for other floors."""
    if floor.kind != "reference_agreement" or held.quality.value is None:
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


def _bounded(job: Job, certificate: Certificate, policy: ExitPolicy, held: HeldOut) -> str:
    gain = _gain(job, held)
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
        f"documents drawn): on average over {documents}, {_kept(job.floor)}{gain}."
    )


def _not_executed(floor: Floor) -> str:
    if floor.kind == "agreement":
        return NOT_EXECUTED
    return f"{NOT_EXECUTED} Only a floor on agreement is executed."


def _gain(job: Job, held: HeldOut) -> str:
    speedup, batch = held.net_speedup.value, job.pricing.batch
    where = f"{job.pricing.machine}, lockstep at batch {batch}" if batch > 1 else job.pricing.machine
    return "" if speedup is None else f"; {speedup:.3f} times as fast as the full model, predicted ({where})"


def _share(agreement: Estimate) -> str:
    assert agreement.value is not None
    said = f"{100 * agreement.value:.1f} %"
    if agreement.low is None or agreement.high is None:
        return said
    return f"{said} ({100 * agreement.low:.1f} to {100 * agreement.high:.1f})"


def _kept(floor: Floor) -> str:
    """What a replay bound states."""
    if floor.clip is None:
        reference = "original full" if floor.kind == "reference_agreement" else "full"
        return f"at least {100 * floor.value:g} % of the tokens agree with the {reference} model"
    return f"the {NATS[floor.kind]} is at most {loss_text(floor, floor.risk)}"


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
