"""Answers as texts: their end, their room, the words of them, and what they are held against."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import WhisperTokenizer

import offramp
from levenshtein import word_error_rate
from offramp.decoding.execution.execution import Execution
from offramp.decoding.execution.executor import opened_executor
from offramp.decoding.written import answer_limit, normaliser_of, plain_words, written
from offramp.kit.given import given_of
from offramp.kit.typed import from_json, to_json
from offramp.models.model import Model
from offramp.policies.grammar import parse_policy
from offramp.scoring.estimate import Estimate
from offramp.tracing.trace import Trace
from offramp.workloads.workload import Workload
from tiny_models import write_pairs

EXITING = parse_policy("threshold:signal=margin,value=0.05,exits=2+3")


@pytest.fixture(scope="module")
def model(whisper: Path) -> Model:
    return offramp.load_model(whisper)


@pytest.fixture(scope="module")
def workload(sounds: Path) -> Workload:
    return offramp.load_workload(f"audio:{sounds}")


@pytest.fixture(scope="module")
def trace(model: Model, workload: Workload) -> Trace:
    return offramp.trace(model, workload, tokens=80, exits="2,3")


class OwnNormaliser:
    """A tokenizer's, as Whisper's is."""

    english_spelling_normalizer: dict[str, str] | None = None
    normalize = WhisperTokenizer.normalize
    basic_normalize = staticmethod(WhisperTokenizer.basic_normalize)


def asked_for(front: tuple[int, ...], **spellings: str) -> Any:
    """A model with these tokens in front of every answer, which knows two languages."""
    tokenizer = OwnNormaliser()
    tokenizer.english_spelling_normalizer = spellings or None
    config = SimpleNamespace(lang_to_id={"<|en|>": 7, "<|de|>": 8})
    return SimpleNamespace(
        tokenizer=tokenizer,
        hf=SimpleNamespace(generation_config=config),
        bos_policy=SimpleNamespace(front=front),
    )


def test_words_are_normalised_as_the_model_has_it() -> None:
    said = "Well, the COLOUR isn't [noise] twenty-one!"
    english = normaliser_of(asked_for((3, 7, 9), colour="color"))
    assert english(said) == "well the color is not 21"
    other = normaliser_of(asked_for((3, 8, 9), colour="color"))
    assert other(said) == "well the colour isn t twenty one"
    assert normaliser_of(asked_for((3,)))(said) == other(said)
    assert len({english.name, other.name}) == 2


def test_a_tokenizer_without_a_normaliser_gets_lower_case_without_punctuation(model: Model) -> None:
    plain = normaliser_of(model)
    said = " Don\N{RIGHT SINGLE QUOTATION MARK}t stop--NOW (please): naïve 3.5 हिन्दी  £5 "
    assert plain(said) == "don't stop now please naïve 3 5 हिन्दी 5"
    assert plain.apply is plain_words


def test_an_answer_ends_at_its_first_end_token(model: Model) -> None:
    (end,) = model.eos_token_ids
    ids = model.tokenizer(" the cat", add_special_tokens=False)["input_ids"]
    whole = written(model, [*ids, end, *ids], 2 * len(ids) + 1)
    assert (whole.text, whole.cut) == (" the cat", False)
    assert written(model, ids, len(ids)).cut
    assert not written(model, ids, len(ids) + 1).cut  # it ended for another reason
    assert written(model, [end], 1).text == ""


def test_an_answer_has_room_for_twice_the_longest_text(
    bart: Path, tmp_path: Path, model: Model, workload: Workload
) -> None:
    front = len(model.bos_policy.front)
    longest = max(len(model.encode(document.text)) for document in workload.documents) - front
    assert model.context_length is not None
    half = model.context_length // 2
    assert answer_limit(model, workload, 8) == min(2 * longest, half)
    assert answer_limit(model, workload, 60) == 60
    short = replace(workload, documents=workload.documents[:1])
    assert answer_limit(model, short, 2) == min(
        half, 2 * (len(model.encode(short.documents[0].text)) - front)
    )
    texts = offramp.workload_of(["a text of its own", "another"])
    assert answer_limit(offramp.load_model(bart), texts, 8) == 8
    pairs = offramp.load_workload(f"pairs:{write_pairs(tmp_path / 'pairs.jsonl')}#en,de")
    assert answer_limit(offramp.load_model(bart), pairs, 8) > 8


def test_what_was_cut_off_certifies_nothing() -> None:
    whole = Execution("d", (0,), (5, 6, 7, 8), (4, 2, 2, 2), (True, True, False, True), 10)
    assert whole.loss == replace(whole, cut=False).loss == pytest.approx(1 / 3)
    assert replace(whole, agrees=(False, True, True, True)).loss == 0.0  # the first came with the prompt
    assert replace(whole, answer=(5,), exits=(4,), agrees=(False,)).loss == 0.0
    assert replace(whole, cut=True).loss == 1.0
    # Token by token the full model's own answer, which does not end either.
    assert replace(whole, cut=True, agrees=(True,) * 4).loss == 0.0
    assert "cut" not in to_json(whole)
    assert from_json(Execution, to_json(replace(whole, cut=True))).cut


def test_the_quality_of_what_was_decoded_is_that_of_each_answer_alone(
    model: Model, workload: Workload, trace: Trace
) -> None:
    with opened_executor(
        model,
        trace,
        kv="auto",
        heads=None,
        workload=workload,
        prompt_tokens=32,
        new_tokens=8,
        folder=None,
        seed=0,
    ) as executor:
        every = executor.text_quality(EXITING, "propagate", 1, 64)
        found = executor.text_quality(EXITING, "propagate", 1, 3)
        limit, report = executor.new_tokens, executor.openings.report
        openings = [*report, *executor.openings.certify[1:], *executor.openings.certify[:1]]
    assert every is not None
    assert found is not None
    assert (every.documents, found.documents, limit) == (len(openings), 3, answer_limit(model, workload, 8))
    first = openings[:3]
    documents = {document.id: document for document in workload.documents}
    texts = [plain_words(documents[opening.document].text) for opening in first]
    exiting: dict[str, Any] = {"policy": EXITING, "kv": "propagate"}
    answers: dict[str, tuple[list[str], int]] = {}
    for name, options in (("full", {}), ("policy", exiting)):
        alone: list[Any] = []
        for opening in first:
            sound = given_of(documents[opening.document])
            assert sound is not None
            alone.append(offramp.generate(model, audio=sound.text, max_new_tokens=limit, **options))
        cut = sum(answer.stopped == "length" for answer in alone)
        answers[name] = ([plain_words(model.decode(one.tokens, special=False)) for one in alone], cut)
    rates = {name: word_error_rate(texts, own) for name, (own, _) in answers.items()}
    assert found.full.value == pytest.approx(rates["full"])
    assert found.policy.value == pytest.approx(rates["policy"])
    assert found.difference.value == pytest.approx(rates["policy"] - rates["full"])
    assert (found.full_cut, found.policy_cut) == (answers["full"][1], answers["policy"][1])
    assert answers["full"][0] != answers["policy"][0]


def test_the_tuner_keeps_it_beside_the_agreement(model: Model, workload: Workload, trace: Trace) -> None:
    tuned = offramp.tune(trace, {"agreement": 0.3}, None, model, kv="propagate", workload=workload)
    assert tuned.tested
    quality = tuned.text_quality
    assert quality is not None
    assert (quality.measure, quality.documents) == ("word error rate", 12 - tuned.documents["search"])
    assert isinstance(quality.difference, Estimate)
