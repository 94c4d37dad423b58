"""The tuner's answer in plain sentences."""

from __future__ import annotations

import math

from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.fixed import Never
from offramp.tuning.held_out import HeldOut
from offramp.tuning.losses import UNITS
from offramp.tuning.pricing import BYTES
from offramp.tuning.results import Certificate, Floor

FEWEST = 3
"""Documents that can be searched, certified and reported on."""

ANSWER_TOKENS = 64
"""Tokens of the answer that a floor on agreement is translated to."""


def answer_of(
    floor: Floor,
    machine: str,
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
        return _chosen(floor, machine, certificate, policy, held)
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


def _too_few(certificate: Certificate, documents: dict[str, int]) -> str:
    usable = sum(documents.values()) - documents["heads"]
    # One document at least searches, besides those that certify.
    needed = max(certificate.documents_needed, FEWEST)
    fitted = documents["heads"]
    others = f" ({fitted} more were used to fit the exit heads)" if fitted else ""
    if usable < needed:
        return f"not certifiable: {usable} documents{others}, {needed} needed; the full model stays."
    needed = certificate.documents_needed
    share = max(certificate.documents, 1) / usable
    left = f"{certificate.documents} documents are left to certify on"
    return (
        f"not certifiable: {left}{others}, {needed} needed; "
        f"trace at least {math.ceil(needed / share)}. The full model stays."
    )


def _chosen(floor: Floor, machine: str, certificate: Certificate, policy: ExitPolicy, held: HeldOut) -> str:
    speedup = held.net_speedup.value
    gain = "" if speedup is None else f"; {speedup:.3f} times as fast as the full model ({machine})"
    if not certificate.holds:
        return f"{policy} kept {floor} on {certificate.documents} documents, without a guarantee{gain}."
    if certificate.delta is None:
        return f"{policy} keeps {floor} on average over draws of documents like these{gain}."
    return f"{policy} is certified: {_kept(floor)}, on documents like these{gain}."


def _kept(floor: Floor) -> str:
    """What a certificate promises."""
    if floor.kind == "agreement":
        return f"at least {100 * floor.value:g} % of the tokens agree with the full model"
    return f"{floor.value:g} {UNITS[floor.kind]}"


def meaning_of(floor: Floor) -> str:
    """What a floor means for an answer, in words."""
    if floor.clip is None:
        same = floor.value**ANSWER_TOKENS
        return (
            f"{floor.value:g}^{ANSWER_TOKENS} = {100 * same:.2g} % of {ANSWER_TOKENS}-token answers "
            "unchanged, if tokens differ independently"
        )
    total = floor.value * ANSWER_TOKENS
    return f"an answer of {ANSWER_TOKENS} tokens may lose {total:.3g} nats in all"
