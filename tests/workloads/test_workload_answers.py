from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.errors import WorkloadError
from offramp.workloads.packing import (
    EncodedDocument,
    PlannedAnswer,
    answer_prompts,
    plan_answers,
    select_contexts,
)


class Model:
    """Answers with a fixed number of tokens per prompt, and remembers what it was asked."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = lengths
        self.batches: list[list[PlannedAnswer]] = []

    def __call__(self, batch: Sequence[PlannedAnswer]) -> list[list[int]]:
        self.batches.append(list(batch))
        return [list(range(100, 100 + self.lengths[item.document]))[: item.max_new_tokens] for item in batch]


def prompts(lengths: Sequence[int]) -> list[EncodedDocument]:
    return [EncodedDocument(f"p{index}", tuple(range(length))) for index, length in enumerate(lengths)]


def test_each_answer_may_have_one_token_more_than_rows() -> None:
    plan = plan_answers(prompts([5] * 100), tokens=2048, context=512)
    assert {item.max_new_tokens for item in plan} == {33}
    assert len(plan) == 100


def test_the_limit_rises_when_there_are_few_prompts_and_stays_in_the_context() -> None:
    plan = plan_answers(prompts([12, 4]), tokens=50, context=20, document_tokens=None)
    assert [item.max_new_tokens for item in plan] == [9, 17]
    plan = plan_answers(prompts([4, 4]), tokens=200, context=512)
    assert [item.max_new_tokens for item in plan] == [101, 101]


def test_prompts_that_fill_the_context_are_not_answered() -> None:
    plan = plan_answers(prompts([20, 4, 30]), tokens=50, context=20)
    assert [item.document for item in plan] == [1]
    with pytest.raises(WorkloadError, match="every prompt fills"):
        plan_answers(prompts([20, 30]), tokens=50, context=20)


def test_no_more_prompts_are_answered_than_needed() -> None:
    model = Model([1000] * 100)
    documents = answer_prompts(prompts([5] * 100), model, tokens=320, context=512, at_once=8)
    assert len(documents) == 10
    assert [len(batch) for batch in model.batches] == [8, 2]
    selection = select_contexts(documents, tokens=320, context=512)
    assert selection.tokens == 320
    assert {item.rows for item in selection.documents} == {32}


def test_answers_cut_at_their_limit_are_made_longer_when_prompts_run_out() -> None:
    model = Model([2, 2, 2, 1000])
    documents = answer_prompts(prompts([5] * 4), model, tokens=150, context=512)
    selection = select_contexts(documents, tokens=150, context=512)
    assert selection.tokens == 150
    assert [item.document for item in model.batches[-1]] == [3]


def test_answers_have_a_longest_and_are_shorter_where_prompts_suffice() -> None:
    model = Model([1000] * 9)
    answer_prompts(prompts([5] * 9), model, tokens=150, context=512, most=100)
    assert [len(batch) for batch in model.batches] == [5]
    assert {item.max_new_tokens for item in model.batches[0]} == {33}
    model = Model([1000] * 4 + [2] * 4)
    documents = answer_prompts(prompts([5] * 8), model, tokens=300, context=512, most=50)
    assert [len(document.ids) - 5 for document in documents] == [51] * 4 + [2] * 4


def test_a_given_limit_is_kept() -> None:
    model = Model([1000] * 4)
    documents = answer_prompts(prompts([5] * 4), model, tokens=150, context=512, document_tokens=10)
    assert [len(document.ids) - 5 for document in documents] == [11] * 4


@given(
    st.lists(st.tuples(st.integers(1, 30), st.integers(1, 80)), min_size=1, max_size=10),
    st.integers(1, 300),
    st.integers(1, 5),
)
def test_all_rows_that_the_answers_hold_are_found(
    sizes: list[tuple[int, int]], tokens: int, at_once: int
) -> None:
    context = 40
    asked = prompts([prompt for prompt, _ in sizes])
    model = Model([answer for _, answer in sizes])
    documents = answer_prompts(asked, model, tokens=tokens, context=context, at_once=at_once)
    possible = sum(min(answer - 1, context - prompt) for prompt, answer in sizes)
    if possible == 0:
        with pytest.raises(WorkloadError):
            select_contexts(documents, tokens=tokens, context=context)
        return
    assert select_contexts(documents, tokens=tokens, context=context).tokens == min(tokens, possible)
    for batch in model.batches:
        assert len(batch) <= at_once
        for planned in batch:
            assert len(planned.ids) + planned.max_new_tokens - 1 <= context
