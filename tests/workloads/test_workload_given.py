"""`offramp.workload_of`: texts, token ids, conversations and datasets at hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import offramp
from offramp.errors import InputError, WorkloadError
from offramp.workloads.packing import EncodedDocuments
from offramp.workloads.registry import load_workload

CHAT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "hello"},
    {"role": "assistant", "content": "hi"},
    {"role": "user", "content": "what is 2 + 2?"},
    {"role": "assistant", "content": "4"},
]


def test_texts_are_documents_and_found_again_by_name() -> None:
    workload = offramp.workload_of(["one text", "another text"])
    assert [document.text for document in workload.documents] == ["one text", "another text"]
    assert (workload.mode, workload.chat) == ("text", False)
    assert load_workload(workload.name) is workload
    assert offramp.workload_of(["one text", "another text"]).name == workload.name
    assert offramp.workload_of(["one text", "another"]).name != workload.name
    assert offramp.workload_of(["one text"], name="mine").name == "given:mine"
    assert offramp.workload_of(["a question"], mode="generation").mode == "generation"


@given(st.lists(st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=9), min_size=1, max_size=5))
def test_token_ids_reach_the_model_exactly(rows: list[list[int]]) -> None:
    workload = offramp.workload_of(rows)

    def never(text: Any) -> list[int]:
        raise AssertionError("token ids are not encoded")

    encoded = EncodedDocuments(workload.documents, never, front=lambda given: (1,), most=4)
    assert [list(one.ids) for one in encoded] == rows
    assert all(one.prepended == 0 for one in encoded)
    assert offramp.workload_of([np.array(row) for row in rows]).fingerprint == workload.fingerprint
    assert workload.fingerprint != offramp.workload_of([" ".join(map(str, row)) for row in rows]).fingerprint


def test_one_document_of_ids_and_a_table_of_them() -> None:
    (document,) = offramp.workload_of([3, 4, 5]).documents
    assert document.tokens == (3, 4, 5)
    table = offramp.workload_of(np.arange(6).reshape(2, 3))
    assert [one.tokens for one in table.documents] == [(0, 1, 2), (3, 4, 5)]


def test_a_conversation_is_answered_where_the_assistant_would() -> None:
    workload = offramp.workload_of([CHAT])
    assert (workload.mode, workload.chat) == ("generation", True)
    (document,) = workload.documents
    assert document.messages is not None
    assert [role for role, _ in document.messages] == ["system", "user", "assistant", "user"]


@pytest.mark.parametrize(
    ("columns", "field", "found"),
    [
        ({"text": ["a b", "c d"], "other": [1, 2]}, None, ["a b", "c d"]),
        ({"question": ["a b", "c d"]}, "question", ["a b", "c d"]),
        ({"input_ids": [[1, 2], [3, 4]], "text": ["x", "y"]}, None, ["1 2", "3 4"]),
        ({"messages": [CHAT, CHAT[:2]]}, None, None),
    ],
)
def test_a_dataset_gives_one_of_its_columns(
    columns: dict[str, Any], field: str | None, found: list[str] | None
) -> None:
    from datasets import Dataset

    workload = offramp.workload_of(Dataset.from_dict(columns), field=field)
    if found is None:
        assert all(document.messages for document in workload.documents)
    else:
        assert [document.text for document in workload.documents] == found


@pytest.mark.parametrize(
    "what",
    [
        [],
        None,
        "a text alone",
        [1.5, 2.5],
        [[1.5]],
        [b"a text"],
        ["half a character: \ud800"],
        [[{"role": "us\udc00er", "content": "hello"}]],
        [["a", "b"]],
        [[-1, 2]],
        [True, False],
        ["a text", [1, 2]],
        [""],
        [[]],
        [[{"role": "assistant", "content": "hi"}]],
        [[{"role": "user"}]],
        [[{"role": "user", "content": [{"type": "image"}]}]],
    ],
)
def test_anything_else_is_refused(what: Any) -> None:
    with pytest.raises(WorkloadError):
        offramp.workload_of(what)


def test_a_dataset_without_a_known_column_names_those_it_has() -> None:
    from datasets import Dataset

    with pytest.raises(WorkloadError, match="no column") as refused:
        offramp.workload_of(Dataset.from_dict({"prompt": ["a"]}))
    assert "prompt" in str(refused.value.where)
    with pytest.raises(WorkloadError, match="answered"):
        offramp.workload_of([CHAT], mode="text")
    with pytest.raises(InputError, match="give 'text' or 'generation' or None"):
        offramp.workload_of(["a text"], mode="gen")  # type: ignore[arg-type]
    with pytest.raises(WorkloadError, match="no workload") as refused:
        load_workload("a long sentence of one's own " * 100)
    assert "workload_of" in refused.value.fix
    with pytest.raises(WorkloadError, match="in this process"):
        load_workload("given:nothing")
