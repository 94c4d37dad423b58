"""`pairs:FILE.jsonl#source,target`: what an encoder-decoder reads and what it is to write."""

from __future__ import annotations

from pathlib import Path

import pytest

from offramp.errors import InputError, WorkloadError
from offramp.kit.given import Given, GivenIds, given_of
from offramp.workloads.packing import EncodedDocuments, encode_prompt, select_contexts
from offramp.workloads.registry import load_workload
from offramp.workloads.workload import Document, Workload

LINES = '{"id": 7, "en": "a house", "de": "ein Haus"}\n\n{"de": "zwei", "en": "two"}\n'


def encode(text: str) -> list[int]:
    """A beginning, and a token for each letter."""
    return [0, *map(ord, text)]


def test_a_pair_is_the_text_to_write_with_what_is_read(tmp_path: Path) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(LINES)
    workload = load_workload(f"pairs:{file}#en,de")
    assert [(document.id, document.text, document.given) for document in workload.documents] == [
        ("7", "ein Haus", Given("a house")),
        ("line 3", "zwei", Given("two")),
    ]
    assert (workload.mode, workload.reads, workload.decoded_whole) == ("text", "text", True)
    other = load_workload(f"pairs:{file}#de,en")
    assert {given_of(document) for document in other.documents} == {Given("ein Haus"), Given("zwei")}
    assert load_workload(f"jsonl:{file}#de").reads is None


def test_the_fingerprint_is_of_what_is_read_too_and_of_texts_as_before() -> None:
    def fingerprint(given: Given | None) -> str:
        return Workload("w", "text", (Document("a", "ein Haus", given=given),), "mine", "here").fingerprint

    assert len({fingerprint(given) for given in (None, Given("a house"), Given("a horse"))}) == 3
    assert Document("a", "ein Haus").content == ["a", "ein Haus"]


def test_contexts_and_prompts_carry_what_is_given() -> None:
    documents = [Document(name, "abcd", given=Given(f"source of {name}")) for name in "xy"]
    encoded = EncodedDocuments(documents, encode, front=lambda given: (0,))
    selection = select_contexts(encoded, tokens=6, context=3)
    assert [given_of(context) for context in selection.contexts] == [
        documents[context.document].given for context in selection.contexts
    ]
    first, second = (encode_prompt(encode, document, 1) for document in documents)
    assert tuple(first) == tuple(second) == (0,)
    assert first != second
    assert first == GivenIds.of([0], Given("source of x"))
    assert len({first, second, GivenIds.of([0], Given("source of y"))}) == 2
    assert type(encode_prompt(encode, Document("z", "abcd"), 2)) is tuple


@pytest.mark.parametrize(
    ("content", "keys", "said"),
    [
        (LINES, "", "a pair is two keys"),
        (LINES, "#en", "the keys of the first line are: id, en, de"),
        (LINES, "#en,", "a pair is two keys"),
        (LINES, "#en,fr", "line 1\nwhat to do: its fields are: id, en, de"),
        (LINES + '{"en": "torn', "#en,de", "line 4"),
        ('{"en": " ", "de": "zwei"}\n', "#en,de", "the field 'en' is empty\nwhere: {}, line 1"),
        ('{"en": "two", "de": ""}\n', "#en,de", "the field 'de' is empty\nwhere: {}, line 1"),
        ('{"en": ["two"], "de": "zwei"}\n', "#en,de", "holds a list, not text"),
        (LINES + '{"id": 7, "en": "two", "de": "zwei"}\n', "#en,de", "is that of line 1 too"),
        ('{"en": "\\ud800", "de": "zwei"}\n', "#en,de", "it holds half a character"),
    ],
)
def test_bad_pairs_are_refused_with_their_line(tmp_path: Path, content: str, keys: str, said: str) -> None:
    file = tmp_path / "pairs.jsonl"
    file.write_text(content)
    with pytest.raises(WorkloadError) as caught:
        load_workload(f"pairs:{file}{keys}")
    assert said.format(file) in str(caught.value)


def test_a_source_says_something() -> None:
    for empty in ({"text": " \n"}, {"tokens": ()}, {}):
        with pytest.raises(InputError, match="the source is empty"):
            Given(**empty)  # type: ignore[arg-type]
