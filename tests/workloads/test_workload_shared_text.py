"""Shared text is found wherever it lies, and nothing else is: against a slow reference.

In real workloads: see `test_workload_short.py`, which has loaded them.
"""

from __future__ import annotations

import re
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.workloads.shared_text import (
    HALF,
    RUN,
    SHINGLE,
    WHOLE,
    WINDOW,
    Sketcher,
    read_sketch,
    sharing,
    text_groups,
    without_shared_text,
    write_sketch,
)
from offramp.workloads.workload import Document

SURE = SHINGLE + WINDOW - 1
"""Words in common that are always found."""


def words(seed: int, count: int, vocabulary: int = 5000) -> list[str]:
    generator = np.random.default_rng(seed)
    return [f"word{number}" for number in generator.integers(vocabulary, size=count)]


def text(seed: int, count: int) -> str:
    return " ".join(words(seed, count))


def documents(*texts: str) -> list[Document]:
    return [Document(f"document {number}", one) for number, one in enumerate(texts)]


def share(one: str, other: str) -> bool:
    sketcher = Sketcher()
    return bool(sharing([sketcher.sketch(one)], [sketcher.sketch(other)]))


# -- a slow reference


def slow_sketch(sketcher: Sketcher, one: str) -> list[int]:
    """The least hash of every window, of equal ones the last, from sketches of single shingles."""
    said = re.findall(r"\w+|[^\w\s]", one.lower())
    shingles = [" ".join(said[place : place + SHINGLE]) for place in range(len(said) - SHINGLE + 1)]
    hashes = [int(sketcher.sketch(shingle)[WHOLE]) for shingle in shingles]
    kept: list[int] = []
    for start in range(max(1, len(hashes) - WINDOW + 1) if hashes else 0):
        window = hashes[start : start + WINDOW]
        place = start + max(place for place, value in enumerate(window) if value == min(window))
        if not kept or kept[-1] != place:
            kept.append(place)
    return [hashes[place] for place in kept]


def slow_share(one: list[int], other: list[int]) -> bool:
    runs = [
        {tuple(side[start : start + RUN]) for start in range(len(side) - RUN + 1)} for side in (one, other)
    ]
    few, many = sorted((set(one), set(other)), key=len)
    return bool(runs[0] & runs[1]) or bool(few and len(few & many) >= HALF * len(few) and few & many)


@settings(max_examples=60)
@given(
    st.lists(
        st.lists(st.sampled_from(["a", "b", "c", "d", "e", "f", "g.", "(", "x"]), max_size=60).map(" ".join),
        min_size=1,
        max_size=5,
    )
)
def test_sketches_and_pairs_are_those_of_the_slow_reference(texts: list[str]) -> None:
    sketcher = Sketcher()
    found = [sketcher.sketch(one) for one in texts]
    slow = [slow_sketch(sketcher, one) for one in texts]
    assert [sketch[WHOLE:].tolist() for sketch in found] == slow
    said = [re.findall(r"\w+|[^\w\s]", one) for one in texts]
    expected = [
        (one, other)
        for one in range(len(texts))
        for other in range(len(texts))
        if said[one] == said[other] or slow_share(slow[one], slow[other])
    ]
    assert sharing(found, found) == expected


# -- what is promised


@settings(max_examples=80)
@given(st.integers(0, 10**6), st.integers(SURE, 60), st.integers(0, 300), st.integers(0, 300))
def test_a_text_inside_a_longer_one_is_found(seed: int, size: int, before: int, after: int) -> None:
    item = text(seed, size)
    longer = f"{text(seed + 1, before)}\n    {item.upper()}\n{text(seed + 2, after)}"
    assert share(item, longer)
    assert share(longer, item)


@settings(max_examples=80)
@given(st.integers(0, 10**6), st.integers(0, 400), st.integers(0, 400), st.integers(0, 400))
def test_fifty_words_in_common_are_found(seed: int, before: int, after: int, around: int) -> None:
    passage = text(seed, 50)
    one = f"{text(seed + 1, before)} {passage} {text(seed + 2, after)}"
    other = f"{text(seed + 3, around)} {passage} {text(seed + 4, before)}"
    assert share(one, other)


@pytest.mark.parametrize("words_in_common", [0, 1, SHINGLE - 1, SHINGLE + WINDOW])
def test_a_few_words_in_common_are_no_shared_text(words_in_common: int) -> None:
    same = text(0, words_in_common)
    assert not share(f"{text(1, 90)} {same} {text(2, 90)}", f"{text(3, 90)} {same} {text(4, 90)}")


@pytest.mark.parametrize(("pieces", "shared"), [(25, True), (12, False)])
def test_half_of_the_shorter_text_decides(pieces: int, shared: bool) -> None:
    """Whatever else the longer one says between pieces that are too short to be text in common alone."""
    item = words(0, 500)
    longer = " ".join(
        f"{' '.join(item[20 * place : 20 * place + 20])} {text(place + 7, 60)}" for place in range(pieces)
    )
    assert share(" ".join(item), f"{longer} {text(1, 1000)}") is shared
    assert share(f"{text(1, 1000)} {longer}", " ".join(item)) is shared


def test_short_texts_are_shared_if_they_are_the_same() -> None:
    assert share("Who are you?", "who  are you ?")
    assert not share("Who are you?", "Who are they?")
    assert not share("", "anything")


def test_the_same_text_twice_is_found_whatever_its_form() -> None:
    """Every document three times: all of it is said often, and still known again."""
    texts = [f"Add {number} and {number + 1} , then give the sum as one number ." for number in range(40)]
    sketches = Sketcher.of(documents(*texts * 3)).sketches(documents(*texts))
    assert len(sharing(sketches, sketches)) == 40


@pytest.mark.parametrize(
    ("count", "saying", "is_form"), [(60, 3, False), (60, 4, True), (200, 4, False), (200, 5, True)]
)
def test_form_is_what_more_than_three_and_two_in_a_hundred_say(
    count: int, saying: int, is_form: bool
) -> None:
    said = [text(999, 30)] * saying + [""] * (count - saying)
    texts = [f"{text(place, 20)} {common}" for place, common in enumerate(said)]
    assert bool(len(Sketcher.of(documents(*texts)).form)) == is_form


def test_the_form_of_a_workload_is_not_its_text() -> None:
    form = "Please solve this problem about integers, and answer with one number only, without any words. "
    texts = [f"{form} {text(number, 14)}" for number in range(60)]
    sketcher = Sketcher.of(documents(*texts))
    assert len(sketcher.form)
    assert text_groups(sketcher.sketches(documents(*texts))).tolist() == list(range(60))
    plain = Sketcher().sketches(documents(*texts))
    assert len(set(text_groups(plain).tolist())) == 1, "or the form was none"


def test_groups_pass_sharing_on() -> None:
    passages = [text(number, 60) for number in range(3)]
    texts = [
        passages[0],
        text(9, 80),
        f"{passages[0]} {passages[1]}",
        f"{passages[1]} {passages[2]}",
        text(8, 9),
    ]
    sketcher = Sketcher()
    assert text_groups([sketcher.sketch(one) for one in texts]).tolist() == [0, 1, 0, 0, 4]
    assert text_groups([]).tolist() == []


def test_candidates_that_share_text_with_what_was_seen_are_left_out() -> None:
    seen = documents(text(0, 500), text(1, 500))
    candidates = documents(" ".join(words(0, 500)[200:240]), text(5, 40), text(1, 500), text(6, 3))
    sketches = Sketcher.of(seen).sketches(seen)
    kept = without_shared_text(candidates, sketches)
    assert [document.id for document in kept] == ["document 1", "document 3"]
    assert without_shared_text(candidates, []) == tuple(candidates)
    assert without_shared_text([], sketches) == ()


def test_a_sketch_is_the_same_whoever_made_it_and_wherever_it_was_kept() -> None:
    texts = [text(3, 200), "", "Ein Satz, größer als ein Wort: ß.", "half of a pair: \ud800"]
    first = Sketcher.of(documents(*texts)).sketches(documents(*texts))
    other = Sketcher.of(documents(*texts))
    other.sketch(text(99, 300))  # words that the first one never saw
    for document, sketch in zip(documents(*texts), first, strict=True):
        assert np.array_equal(other.sketch(document.text), sketch)
        again = read_sketch(write_sketch(sketch))
        assert again.dtype == np.uint32
        assert np.array_equal(again, sketch)
    with pytest.raises(ValueError, match=r"base64|padding|Only"):
        read_sketch("no sketch!")


def test_a_thousand_documents_of_two_kilobytes_take_a_second() -> None:
    many = documents(*(text(number, 250) for number in range(1000)))
    started = time.process_time()
    sketches = Sketcher().sketches(many)
    assert time.process_time() - started < 2.5, "a second on a processor that is not shared"
    started = time.process_time()
    assert len(sharing(sketches, sketches)) == 1000
    assert time.process_time() - started < 2.5
