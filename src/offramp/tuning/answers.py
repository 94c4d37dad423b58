"""The tuner's answer in plain sentences."""

from __future__ import annotations

from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.fixed import Never
from offramp.tuning.held_out import HeldOut
from offramp.tuning.losses import NATS, loss_text
from offramp.tuning.pricing import BYTES
from offramp.tuning.results import Certificate, Floor
from offramp.tuning.splits import fewest_documents

ALONE = "agreement and skip of each token alone; in lockstep tokens leave later"
"""What is searched and certified at a batch above 1."""

ANSWER_TOKENS = 64
"""Tokens of the answer that a floor on agreement is translated to."""


def answer_of(
    floor: Floor,
    machine: str,
    batch: int,
    candidates: int,
    certificate: Certificate,
    policy: ExitPolicy,
    held: HeldOut,
    documents: dict[str, int],
) -> str:
    """What came out, and why.

    candidates: policies that were to be tested. held: the policy on the report documents. documents: how many
    have each role.
    """
    if not isinstance(policy, Never):
        return _chosen(floor, machine, batch, certificate, policy, held)
    return _unchanged(floor, machine, candidates, certificate, documents) + _transform_cost(floor, held)


def _unchanged(
    floor: Floor, machine: str, candidates: int, certificate: Certificate, documents: dict[str, int]
) -> str:
    """Why the full model stays."""
    if certificate.documents < certificate.documents_needed or not documents["search"]:
        return _too_few(certificate, documents)
    if not candidates:
        better = "moves fewer bytes" if machine == BYTES else f"is faster on {machine}"
        return (
            f"Nothing beats the full model here: on {documents['search']} documents, no policy that keeps "
            f"{floor} {better} once every probe is charged."
        )
    return (
        f"not certifiable: none of {candidates} faster policies passed the test of {floor} on "
        f"{certificate.documents} documents; the full model stays."
    )


def _transform_cost(floor: Floor, held: HeldOut) -> str:
    """What the transform alone loses of a floor against the untransformed model; nothing for other floors."""
    if floor.kind != "reference_agreement" or held.quality.value is None:
        return ""
    return f" It agrees with the untransformed one on {100 * held.quality.value:.1f} % of the tokens."


def _too_few(certificate: Certificate, documents: dict[str, int]) -> str:
    certify, needed, fitted = certificate.documents, certificate.documents_needed, documents["heads"]
    usable = sum(documents.values()) - fitted
    heads = f", {fitted} more fitted the exit heads" if fitted else ""
    if certify < needed:
        said = f"{certify} documents, {needed} needed (left to certify, of {usable} traced{heads})"
    else:
        said = f"no document is left to search on (of {usable} traced{heads})"
    return (
        f"not certifiable: {said}; trace at least {fewest_documents(needed) + fitted} in all. "
        "The full model stays."
    )


def _chosen(
    floor: Floor, machine: str, batch: int, certificate: Certificate, policy: ExitPolicy, held: HeldOut
) -> str:
    speedup = held.net_speedup.value
    where = f"{machine}, lockstep at batch {batch}" if batch > 1 else machine
    gain = "" if speedup is None else f"; {speedup:.3f} times as fast as the full model ({where})"
    if batch > 1:
        gain += f". What is tested is {ALONE}"
    if not certificate.holds:
        return f"{policy} kept {floor} on {certificate.documents} documents, without a guarantee{gain}."
    if certificate.delta is None:
        return f"{policy} keeps {floor} on average over draws of documents like these{gain}."
    return (
        f"{policy} is certified (with probability {1.0 - certificate.delta:g} over the documents drawn): "
        f"on average over documents like these, {_kept(floor)}{gain}."
    )


def _kept(floor: Floor) -> str:
    """What a certificate promises."""
    if floor.clip is None:
        reference = "untransformed full" if floor.kind == "reference_agreement" else "full"
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
