"""Answers against the texts that were to be written: by hand, counted twice, and paired by document."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from levenshtein import word_error_rate
from offramp.defaults import DRAWS, SEED
from offramp.kit.typed import from_json, to_json
from offramp.scoring import text_quality as module
from offramp.scoring.text_quality import (
    Measure,
    Normaliser,
    TextQuality,
    WrittenAnswer,
    not_counted,
    text_quality,
)

LOWER = Normaliser("in lower case", str.lower)
WORDS = st.lists(st.sampled_from("abcd"), max_size=7).map(" ".join)


def written(answers: Sequence[str], cut: Sequence[int] = ()) -> list[WrittenAnswer]:
    return [WrittenAnswer(answer, place in cut) for place, answer in enumerate(answers)]


def quality(
    measure: Measure, texts: Sequence[str], full: Sequence[str], policy: Sequence[str], **more: Any
) -> TextQuality:
    return text_quality(
        measure, texts, written(full), written(policy), normaliser=LOWER, new_tokens=32, **more
    )


def test_a_word_error_rate_worked_by_hand() -> None:
    texts = ["The cat sat on the mat", "two words"]
    # One word replaced and one left out of six; one put in beside two that are right.
    policy = ["the cat  sit on mat", "two more words"]
    found = quality("word error rate", texts, ["the cat sat on the mat", "two words"], policy)
    assert (found.full.value, found.policy.value) == (0.0, pytest.approx(3 / 8))
    assert found.difference.value == pytest.approx(3 / 8)
    assert found.full.low is None
    assert found.full.no_interval == "2 documents; an interval needs 20"
    assert (found.measure, found.normaliser, found.documents) == ("word error rate", "in lower case", 2)


def test_more_may_be_wrong_than_was_said_and_silence_is_all_wrong() -> None:
    found = quality("word error rate", ["one two"], [""], ["five of these are wrong"])
    assert (found.full.value, found.policy.value) == (1.0, 2.5)


def test_an_exact_match_is_the_text_but_for_space_around_it() -> None:
    texts = ["Ja.", "nein", "vielleicht", " so "]
    found = quality("exact match", texts, ["Ja. ", "nein", "Vielleicht", "so"], ["Ja", "nein", "", "so!"])
    assert (found.full.value, found.policy.value, found.difference.value) == (0.75, 0.25, -0.5)
    assert found.normaliser is None


@given(texts=st.lists(st.tuples(WORDS, WORDS, WORDS), min_size=1, max_size=4))
def test_words_are_counted_as_the_definition_counts_them(texts: list[tuple[str, str, str]]) -> None:
    said, full, policy = (list(column) for column in zip(*texts, strict=True))
    found = quality("word error rate", said, full, policy)
    if not any(text.split() for text in said):
        assert found.full.undefined == found.difference.undefined == "no text has a word"
        return
    assert found.full.value == pytest.approx(word_error_rate(said, full))
    assert found.policy.value == pytest.approx(word_error_rate(said, policy))
    assert found.difference.value == pytest.approx(
        word_error_rate(said, policy) - word_error_rate(said, full)
    )
    # A word that nobody said makes at most one more of them wrong, and none that was wrong right.
    assert found.policy.value is not None
    more = quality("word error rate", said, full, [f"{answer} new" for answer in policy]).policy.value
    assert more is not None
    words = sum(len(text.split()) for text in said)
    assert -1e-9 <= (more - found.policy.value) * words <= len(said) + 1e-9
    same = quality("word error rate", said, said, [text.upper() for text in said])
    assert (same.full.value, same.policy.value, same.difference.value) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("measure", ["word error rate", "exact match"])
def test_the_difference_is_paired_by_document(measure: Measure) -> None:
    generator = np.random.default_rng(5)
    texts, full, policy = [], [], []
    for _ in range(30):
        said = generator.choice(list("abcdefgh"), size=int(generator.integers(3, 9))).tolist()
        hard = int(generator.integers(0, 3))  # words that both get wrong
        full.append(" ".join(["x"] * hard + said[hard:]))
        policy.append(" ".join(["y"] * hard + said[hard:-1] + ["z"] * int(generator.integers(0, 2))))
        texts.append(" ".join(said))
    found = quality(measure, texts, full, policy)
    if measure == "word error rate":
        units = np.array([len(text.split()) for text in texts])
        wrong = [
            np.array([word_error_rate([text], [answer]) for text, answer in zip(texts, side, strict=True)])
            * units
            for side in (full, policy)
        ]
    else:
        units = np.ones(30)
        wrong = [
            np.array([float(text == answer) for text, answer in zip(texts, side, strict=True)])
            for side in (full, policy)
        ]
    drawn = np.random.default_rng(SEED).multinomial(30, np.full(30, 1 / 30), size=DRAWS)
    differences = [(row @ wrong[1] - row @ wrong[0]) / (row @ units) for row in drawn]
    limits = np.percentile(differences, [2.5, 97.5])
    assert [found.difference.low, found.difference.high] == pytest.approx(limits)
    assert found.full.low is not None
    assert found.policy.high is not None


def test_answers_that_were_cut_off_are_counted_and_the_record_is_read_back() -> None:
    found = text_quality(
        "exact match",
        ["a", "b", "c"],
        written(["a", "b", "c"], cut=[1]),
        written(["a", "b", "d"], cut=[1, 2]),
        normaliser=LOWER,
        new_tokens=24,
    )
    assert (found.full_cut, found.policy_cut, found.new_tokens) == (1, 2, 24)
    assert from_json(TextQuality, to_json(found)) == found


def test_without_the_package_it_is_said_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    assert not_counted("audio", 32) is None
    monkeypatch.setattr(module, "COUNTER", "no-such-package-of-offramp")
    found = not_counted("audio", 32)
    assert found is not None
    assert found.full.value is found.difference.value is None
    assert "pip install 'offramp[speech]'" in str(found.policy.undefined)
    assert not_counted("text", 32) is None
