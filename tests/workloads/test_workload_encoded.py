"""Long texts: no more of them is encoded than is wanted, and the ids are those of the whole."""

from __future__ import annotations

import re

from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.workloads import packing
from offramp.workloads.packing import EncodedDocuments, encode_start
from offramp.workloads.workload import Document


class Encoder:
    """A token per word, by its letters, and what it was given."""

    def __init__(self) -> None:
        self.characters = 0

    def __call__(self, text: str) -> list[int]:
        self.characters += len(text)
        return [sum(map(ord, word)) for word in re.findall(r"\S+|\s+", text)]


@settings(max_examples=200)
@given(st.lists(st.text("ab \n", min_size=1, max_size=9), max_size=400), st.integers(1, 30))
def test_the_ids_are_the_first_of_the_whole(parts: list[str], most: int) -> None:
    text = "".join(parts)
    short, per_token = packing.SHORTEST_START, packing.CHARACTERS_PER_TOKEN
    packing.SHORTEST_START, packing.CHARACTERS_PER_TOKEN = 4, 2
    try:
        found = encode_start(Encoder(), text, most)
    finally:
        packing.SHORTEST_START, packing.CHARACTERS_PER_TOKEN = short, per_token
    whole = Encoder()(text)
    assert list(found) == whole[: len(found)]
    assert len(found) >= min(most, len(whole))


def test_of_a_long_text_a_start_is_encoded() -> None:
    encoder, text = Encoder(), "some words " * 1_000_000
    (document,) = EncodedDocuments([Document("long", text)], encoder, most=65)
    assert document.ids == tuple(Encoder()(text[:2000])[:65])
    assert encoder.characters < 100_000


def test_one_endless_word_is_encoded_as_far_as_needed() -> None:
    assert encode_start(Encoder(), "a" * 200_000, 5) == [97 * 200_000]
    assert encode_start(Encoder(), "a" * 200_000, None) == [97 * 200_000]
