"""Certificates in plain words, each case by hand."""

from dataclasses import replace

import answer_examples as answers
import pytest

from offramp.policies.rules.fixed import StaticExit
from offramp.report.sections.tuned import certificate_sentence, risk_text, status
from offramp.tuning.certificate import Certificate
from offramp.tuning.floor import Floor

AGREEMENT = Floor("agreement", 0.99)
NLL = Floor("nll", 0.05, clip=4.0)
KL = Floor("kl", 0.1, clip=2.0)


@pytest.mark.parametrize(
    ("floor", "made", "state", "said"),
    [
        (
            AGREEMENT,
            answers.certificate(True, 300, 230, executed=True, stopped_after=261),
            "certified",
            "Decoded from 261 documents, this policy loses at most 1 % of tokens that it generates, with "
            "90 % confidence",
        ),
        (
            AGREEMENT,
            answers.certificate(True, 300, 230),
            "replay bound",
            "With 300 documents replayed, this policy loses at most 1 % of tokens, with 90 % confidence, on "
            "documents like these, as long as later tokens read the full model's own keys and values: "
            "nothing was decoded.",
        ),
        # 0.1 ** (1 / 15) = 0.8577, rounded down: 0.858 could not be certified. A loss is rounded up.
        (AGREEMENT, answers.certificate(False, 15, 230), "not certifiable", "could be certified is 0.857."),
        (KL, answers.certificate(False, 15, 45, best_floor=0.2841), "not certifiable", "is 0.285 nats."),
        (AGREEMENT, answers.certificate(False, 300, 230), "not certified", "candidates tested (24)"),
        (
            AGREEMENT,
            answers.certificate(False, 300, 230, tested=0),
            "nothing to certify",
            "no policy found keeps 99 % agreement and beats the full model",
        ),
        (
            AGREEMENT,
            answers.certificate(False, 300, 1, method="naive", delta=None, risk_bound=None),
            "no guarantee",
            "No guarantee, and no faster policy kept 99 % agreement on 300 documents.",
        ),
        (
            NLL,
            answers.certificate(True, 1, 1, method="hb", delta=0.05),
            "replay bound",
            "With 1 document replayed, this policy loses at most 0.050 nats of log-likelihood a token, each "
            "token's counted up to 4.000 nats, with 95 % confidence",
        ),
        (
            AGREEMENT,
            answers.certificate(True, 300, 100, method="crc", delta=None),
            "replay bound",
            "this policy loses at most 1 % of tokens, on average over such calibrations, on documents like",
        ),
    ],
)
def test_sentences(floor: Floor, made: Certificate, state: str, said: str) -> None:
    tuned = answers.tuned(floor, made)
    assert status(tuned) == state
    assert said in certificate_sentence(tuned)


def test_a_policy_without_a_guarantee_is_not_promised_for_others() -> None:
    made = answers.certificate(False, 300, 1, method="naive", delta=None)
    tuned = replace(answers.tuned(AGREEMENT, made), policy=StaticExit(20))
    assert status(tuned) == "no guarantee"
    assert "this policy kept 99 % agreement, but nothing follows for others" in certificate_sentence(tuned)


def test_a_risk_is_a_share_of_tokens_or_nats():
    assert risk_text(AGREEMENT, 0.0088) == "0.88 % of tokens"
    assert risk_text(NLL, 0.0125) == "0.050 nats"
    assert risk_text(NLL, None) == "none"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"document_tokens": (16, 16, 16)},
            "With 300 documents of 16 tokens replayed",
        ),
        (
            {"document_tokens": (9, 14, 1600)},
            "With 300 documents of 9 to 1,600 tokens (median 14) replayed",
        ),
        (
            {"executed": True, "stopped_after": 61, "new_tokens": 32, "document_tokens": (16, 16, 16)},
            "Decoded from 61 documents of up to 32 new tokens",
        ),
    ],
)
def test_short_documents_are_called_that_beside_a_certificate(changes, words):
    made = answers.tuned(AGREEMENT, answers.certificate(True, 300, 230))
    made = replace(made, certificate=replace(made.certificate, **changes))
    assert words in certificate_sentence(made)
    few = replace(made.certificate, holds=False, documents=15)
    said = certificate_sentence(replace(made, certificate=few))
    length = made.certificate.of_tokens.strip()
    assert f"Not certifiable: 15 documents, 230 needed ({length} each); with so few" in said
