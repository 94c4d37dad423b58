from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.errors import InputError, WorkloadError
from offramp.workloads import packing
from offramp.workloads.packing import (
    Context,
    EncodedDocument,
    EncodedDocuments,
    Selection,
    encode_start,
    least_sufficient_cap,
    select_contexts,
)
from offramp.workloads.workload import Document

BOS = (-1, -2)


def text(index: int, length: int, prepended: int = 0) -> EncodedDocument:
    """A document whose token ids say where they stand: 1000 x document + offset."""
    own = tuple(1000 * index + offset for offset in range(length))
    return EncodedDocument(f"d{index}", BOS[:prepended] + own, prepended=prepended)


def answered(index: int, prompt: int, answer: int) -> EncodedDocument:
    ids = tuple(1000 * index + offset for offset in range(prompt + answer))
    return EncodedDocument(f"d{index}", ids, prompt_length=prompt)


def rows_of(contexts: Sequence[Context]) -> list[tuple[int, int, int]]:
    """Every traced row as (document, input token, next token)."""
    return [
        (context.document, token, following)
        for context in contexts
        for token, following in zip(context.ids[context.first_row :], context.next_tokens, strict=True)
    ]


def reference_rows(lengths: Sequence[int], tokens: int, cap: int) -> list[tuple[int, int, int]]:
    """One row at a time: walk each document up to the cap, stop at the total."""
    rows: list[tuple[int, int, int]] = []
    for index, length in enumerate(lengths):
        for offset in range(length - 1):
            if offset < cap and len(rows) < tokens:
                rows.append((index, 1000 * index + offset, 1000 * index + offset + 1))
    return rows


def reference_cap(available: Sequence[int], tokens: int, first: int) -> int:
    """Raise the cap one by one until the documents suffice or nothing is left to raise it for."""
    cap = first
    while sum(min(cap, rows) for rows in available) < tokens and cap < max(available):
        cap += 1
    return cap


def check_contexts(selection: Selection, documents: Sequence[EncodedDocument], context: int) -> None:
    for item in selection.contexts:
        document = documents[item.document]
        own = document.ids[document.prepended :]
        assert len(item.ids) <= context
        assert item.rows >= 1
        assert item.ids[: item.first_row] == document.ids[: document.prepended]
        end = item.start + item.rows
        assert item.ids[item.first_row :] == own[item.start : end]
        assert item.next_token == own[end]


lengths_of_documents = st.lists(st.integers(0, 120), min_size=1, max_size=12)


@given(lengths_of_documents, st.integers(1, 400), st.integers(3, 50), st.integers(0, 2), st.integers(1, 60))
def test_a_given_cap_equals_walking_row_by_row(
    lengths: list[int], tokens: int, context: int, prepended: int, cap: int
) -> None:
    documents = [text(index, length, prepended) for index, length in enumerate(lengths)]
    expected = reference_rows(lengths, tokens, cap)
    if not expected:
        with pytest.raises(WorkloadError, match="no document"):
            select_contexts(documents, tokens=tokens, context=context, document_tokens=cap)
        return
    selection = select_contexts(documents, tokens=tokens, context=context, document_tokens=cap)
    assert rows_of(selection.contexts) == expected
    assert selection.tokens == len(expected)
    assert selection.document_tokens == cap
    check_contexts(selection, documents, context)


@given(lengths_of_documents.filter(lambda lengths: max(lengths) > 1), st.integers(1, 900), st.integers(3, 50))
def test_the_automatic_cap_equals_raising_it_one_by_one(
    lengths: list[int], tokens: int, context: int
) -> None:
    documents = [text(index, length) for index, length in enumerate(lengths)]
    available = [max(0, length - 1) for length in lengths]
    cap = reference_cap(available, tokens, first=min(max(tokens // 64, 32), context))
    selection = select_contexts(documents, tokens=tokens, context=context)
    assert selection.document_tokens == cap
    assert rows_of(selection.contexts) == reference_rows(lengths, tokens, cap)
    assert selection.tokens == min(tokens, sum(available))
    check_contexts(selection, documents, context)


@given(
    st.lists(st.tuples(st.integers(1, 40), st.integers(0, 40)), min_size=1, max_size=8),
    st.integers(1, 200),
    st.integers(2, 60),
)
def test_answers_are_never_split_and_only_generated_inputs_count(
    sizes: list[tuple[int, int]], tokens: int, context: int
) -> None:
    documents = [answered(index, prompt, answer) for index, (prompt, answer) in enumerate(sizes)]
    available = [
        max(0, min(prompt + answer - 1, context) - prompt) if prompt < context else 0
        for prompt, answer in sizes
    ]
    if not any(available):
        with pytest.raises(WorkloadError):
            select_contexts(documents, tokens=tokens, context=context)
        return
    selection = select_contexts(documents, tokens=tokens, context=context)
    assert selection.tokens == min(tokens, sum(available))
    assert len({item.document for item in selection.contexts}) == len(selection.contexts)
    for item in selection.contexts:
        prompt, _ = sizes[item.document]
        assert item.generated
        assert item.first_row == prompt
        assert item.ids == documents[item.document].ids[: len(item.ids)]
        assert len(item.ids) <= context
        assert item.next_token == documents[item.document].ids[len(item.ids)]


@given(st.lists(st.integers(0, 50), max_size=10), st.integers(1, 300))
def test_least_sufficient_cap_is_the_least(available: list[int], tokens: int) -> None:
    cap = least_sufficient_cap(available, tokens)

    def total(limit: int) -> int:
        return sum(min(limit, rows) for rows in available)

    if sum(available) < tokens:
        assert cap == max(available, default=0)
    else:
        assert total(cap) >= tokens > total(cap - 1)


def test_a_long_text_is_split_by_hand() -> None:
    # 6 own tokens, one BOS, contexts of 3: two own tokens each; the sixth token is only a next token.
    selection = select_contexts([text(0, 6, prepended=1)], tokens=100, context=3)
    assert selection.contexts == (
        Context(0, 0, (-1, 0, 1), 2, first_row=1),
        Context(0, 2, (-1, 2, 3), 4, first_row=1),
        Context(0, 4, (-1, 4), 5, first_row=1),
    )
    assert selection.tokens == 5
    assert selection.contexts[0].next_tokens == (1, 2)


def test_an_answer_by_hand() -> None:
    # The prompt's last position predicts the first new token at full depth: no row. 3 new tokens give 2 rows.
    selection = select_contexts([answered(0, 4, 3)], tokens=100, context=16)
    assert selection.contexts == (Context(0, 0, (0, 1, 2, 3, 4, 5), 6, first_row=4, generated=True),)


@pytest.mark.parametrize(
    ("documents", "skipped"),
    [
        (
            [text(0, 1, prepended=1), text(1, 40, prepended=1), text(2, 0, prepended=1)],
            {
                "d0": "1 token, so no token with a known next one",
                "d2": "0 tokens, so no token with a known next one",
            },
        ),
        (
            [answered(0, 64, 5), answered(1, 4, 1), answered(2, 4, 5)],
            {
                "d0": "the prompt's 64 tokens fill the context of 64",
                "d1": "the answer has fewer than two tokens",
            },
        ),
    ],
    ids=["texts", "prompts"],
)
def test_what_has_no_row_is_reported_by_id(documents: list[EncodedDocument], skipped: dict[str, str]) -> None:
    selection = select_contexts(documents, tokens=1000, context=64)
    assert {item.id: item.reason for item in selection.skipped} == skipped
    assert len(selection.documents) == 1


def test_one_token_documents_only_are_an_error_that_names_them() -> None:
    with pytest.raises(WorkloadError, match="d0: 1 token"):
        select_contexts([text(0, 1)], tokens=10, context=64)


def test_a_context_that_the_bos_fills_is_refused() -> None:
    with pytest.raises(InputError, match=r"filled by the 2 .*\nwhere: the document d0"):
        select_contexts([text(0, 9, prepended=2)], tokens=10, context=2)


def test_documents_are_encoded_once_and_only_when_needed() -> None:
    encoded: list[str] = []

    def encode(content: str) -> list[int]:
        encoded.append(content)
        return [-1, *range(50)]

    documents = [Document(f"d{index}", f"text {index}") for index in range(9)]
    lazy = EncodedDocuments(documents, encode, front=lambda given: BOS[:1])
    selection = select_contexts(lazy, tokens=64, context=512)
    assert [item.id for item in selection.documents] == ["d0", "d1"]
    assert encoded == ["text 0", "text 1"]
    assert lazy[-1].id == "d8"
    assert [document.id for document in lazy[7:]] == ["d7", "d8"]
    assert lazy[0].ids == (-1, *range(50))
    assert lazy[0].available == 49


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
