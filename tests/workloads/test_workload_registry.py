from __future__ import annotations

import dataclasses
import itertools
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from offramp.errors import WorkloadError
from offramp.testing import check_workload, check_workload_source
from offramp.workloads import registry
from offramp.workloads.registry import (
    describe_workloads,
    load_workload,
    register_workload,
)
from offramp.workloads.standard_library import PROSE, clean_topic, from_first_definition, without_containers
from offramp.workloads.workload import Document, Workload, WorkloadSource

BUILT_IN = {
    "prose": ("PSF-2.0", "text", False),
    "code": ("PSF-2.0", "text", False),
    "chat": ("Apache-2.0", "generation", True),
    "math": ("Apache-2.0", "generation", True),
}
"""Licence, mode and whether it is a chat."""


@pytest.mark.parametrize("name", BUILT_IN)
def test_built_in_workloads_keep_the_contract(name: str) -> None:
    workload = check_workload_source(registry._SOURCES[name])
    assert workload.name == name
    assert (workload.licence, workload.mode, workload.chat) == BUILT_IN[name]
    assert len(workload.documents) >= 60
    (described,) = [item for item in describe_workloads() if item.name == name]
    if name != "prose":  # how many topics Python has depends on its version
        assert described.documents.split()[0] == str(len(workload.documents))


def test_fingerprints_are_the_same_in_another_process() -> None:
    names = [*BUILT_IN]
    program = (
        "from offramp.workloads.registry import load_workload; "
        f"print(*(load_workload(name).fingerprint for name in {names!r})); "
        "import sys; assert 'torch' not in sys.modules"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == [load_workload(name).fingerprint for name in names]


def test_prose_topics_share_no_text() -> None:
    documents = load_workload("prose").documents
    lines = [
        {line.strip() for line in document.text.splitlines() if len(line.strip()) >= 40}
        for document in documents
    ]
    for index, one in enumerate(lines):
        for other in lines[:index]:
            shorter = min(len(one), len(other))
            assert len(one & other) <= 0.7 * shorter


def test_cleaning_a_topic_removes_only_underlines_and_spare_blank_lines() -> None:
    assert clean_topic('The "x"\n*******\n\n\n\nText -- *args*\n   a ::= b\n') == (
        'The "x"\n\nText -- *args*\n   a ::= b\n'
    )


def test_a_chapter_that_holds_a_section_is_left_out() -> None:
    line = "a line that is long enough to be told from others, number "
    section = "\n".join(line + str(number) for number in range(5))
    chapter = section + "\n" + "\n".join(line + str(number) for number in range(50, 70))
    assert without_containers({"chapter": chapter, "section": section, "twin": section}) == {
        "section": section
    }


def test_code_begins_at_its_first_definition() -> None:
    module = '"""Doc.\n\ndef is a keyword.\n"""\n# Licence\nimport os\n\n@cache\ndef f():\n    pass\n'
    assert from_first_definition(module) == "@cache\ndef f():\n    pass\n"
    assert from_first_definition("x = 1\n") == "x = 1\n"
    assert load_workload("code").documents[0].text.startswith(("def ", "class ", "@", "async def "))


def test_code_without_library_sources_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    with pytest.raises(WorkloadError, match="standard library lacks"):
        load_workload("code")


def test_math_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(WorkloadError, match=r"offramp\[math\]"):
        load_workload("math")


def test_math_mixes_its_families() -> None:
    families = [document.id.rsplit("-", 1)[0] for document in load_workload("math").documents]
    assert len(families) >= 100
    assert len(set(families[:14])) == 14


def test_an_unknown_name_gives_near_matches_and_the_list() -> None:
    with pytest.raises(WorkloadError) as caught:
        load_workload("proze")
    assert "did you mean prose?" in str(caught.value)
    assert caught.value.where == "workload proze"
    assert all(described.name in str(caught.value) for described in describe_workloads())
    assert caught.value.exit_code == 2


def test_a_bare_path_is_told_how_to_be_written(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_text("hello")
    with pytest.raises(WorkloadError, match="write txt:"):
        load_workload(str(file))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("txt", "write txt:PATH"),
        ("txt:", "write txt:PATH"),
        ("chat:2", "takes no argument"),
        ("chat:", "takes no argument"),
        ("prose:2", "has no size '2'\nwhat to do: write prose or prose:short"),
        ("prose:", "has no size ''"),
        ("math:shrt", "did you mean math:short"),
    ],
)
def test_arguments_that_do_not_fit_the_source(spec: str, message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        load_workload(spec)


def plug_in(documents: tuple[Document, ...], name: str = "poems") -> WorkloadSource:
    workload = Workload(name, "text", documents, licence="CC0-1.0", source="here")
    return WorkloadSource(name, lambda argument: workload, "text", "two", "CC0-1.0", "poems")


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_SOURCES", dict(registry._SOURCES))


@pytest.mark.usefixtures("registered")
def test_a_registered_source_is_loaded_and_listed() -> None:
    register_workload(plug_in((Document("a", "A"), Document("b", "B"))))
    assert load_workload("poems").licence == "CC0-1.0"
    assert "poems" in {described.name for described in describe_workloads()}
    assert [one.name for one in describe_workloads()][-2:] == ["poems", "continued:N+M:WORKLOAD"]


@pytest.mark.usefixtures("registered")
def test_an_entry_point_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    source = plug_in((Document("a", "A"),))
    monkeypatch.setattr(EntryPoint, "load", lambda self: source)
    found = [EntryPoint("poems", "poems_package:SOURCE", registry.ENTRY_POINT_GROUP)]
    monkeypatch.setattr("offramp.plug_ins.entry_points", lambda group: found)
    assert load_workload("poems").documents[0].id == "a"


@pytest.mark.usefixtures("registered")
@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("no_such_package:SOURCE", "cannot be loaded: No module named 'no_such_package'"),
        ("json:SOURCE", "cannot be loaded: .*'SOURCE'"),
        ("json:dumps", "is of type function, not a WorkloadSource"),
    ],
)
def test_a_broken_plug_in_is_named_and_stops_no_other(
    monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    found = [EntryPoint("poems", value, registry.ENTRY_POINT_GROUP)]
    monkeypatch.setattr("offramp.plug_ins.entry_points", lambda group: found)
    with pytest.raises(WorkloadError, match=message) as caught:
        load_workload("poems")
    assert f"poems = {value}" in str(caught.value)
    assert load_workload("chat").name == "chat"


@pytest.mark.usefixtures("registered")
def test_a_name_is_taken_once() -> None:
    register_workload(PROSE)
    for name in ("prose", "continued", "given"):
        with pytest.raises(WorkloadError, match=f"two workload sources named '{name}'"):
            register_workload(plug_in((Document("a", "A"),), name=name))


@pytest.mark.usefixtures("registered")
def test_a_source_that_gives_unusable_documents() -> None:
    register_workload(plug_in((Document("a", "A"), Document("b", " "))))
    with pytest.raises(WorkloadError, match="is empty"):
        load_workload("poems")


GOOD = Workload("poems", "text", (Document("a", "A"), Document("b", "B")), licence="CC0-1.0", source="here")
SOURCE = WorkloadSource("poems", lambda argument: GOOD, "text", "two", "CC0-1.0", "poems")


def test_a_good_workload_is_returned() -> None:
    assert check_workload(GOOD) is GOOD
    assert check_workload(lambda: GOOD) is GOOD
    assert check_workload_source(SOURCE) is GOOD


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"documents": ()}, "no documents"),
        ({"documents": (Document("a", "A"), Document("a", "B"))}, "same id"),
        ({"documents": (Document("a", " \n"),)}, "is empty"),
        (
            {"documents": (Document("a", "half \ud800"),)},
            "text holds half of a surrogate .* character 5",
        ),
        ({"documents": (Document("a\ud800", "text"),)}, "id holds half of a surrogate .* character 1"),
        ({"licence": ""}, "licence is not set"),
        ({"source": " "}, "source is not set"),
        ({"name": ""}, "name is not set"),
        ({"mode": "audio"}, "mode must be 'text' or 'generation', not 'audio'"),
        ({"mode": None}, "mode cannot be None"),
        ({"name": None}, "name cannot be None"),
        ({"documents": ("a", "b")}, "documents cannot be tuple"),
        ({"prompt_tokens": -3}, "prompt tokens must be at least 1, not -3"),
        ({"prompt_tokens": 0, "mode": "generation"}, "prompt tokens must be at least 1, not 0"),
        ({"new_tokens": 0, "mode": "generation"}, "new tokens must be at least 1, not 0"),
        ({"chat": True}, "chat template"),
    ],
)
def test_each_broken_rule_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        check_workload(dataclasses.replace(GOOD, **change))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"id": 1}, "id cannot be int 1"),
        ({"text": None}, "text cannot be None"),
        ({"tokens": (5, 1.5)}, "tokens cannot be tuple"),
        ({"tokens": (5, -1)}, "tokens must be at least 0"),
        ({"messages": (("user",),)}, "messages cannot be tuple"),
    ],
)
def test_a_document_made_by_hand_is_of_texts_and_ids(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        Document(**{"id": "a", "text": "A", **fields})


def test_documents_may_be_any_sequence_and_numbers_of_numpy() -> None:
    documents = (Document(name, name, tokens=np.array([1, 2])) for name in "ab")
    workload = dataclasses.replace(GOOD, documents=documents)
    assert workload.documents == (Document("a", "a", tokens=(1, 2)), Document("b", "b", tokens=(1, 2)))
    assert len(workload.fingerprint) == 64


def test_two_loads_must_be_equal() -> None:
    count = itertools.count()

    def shuffled() -> Workload:
        return dataclasses.replace(GOOD, documents=GOOD.documents[:: -1 if next(count) else 1])

    with pytest.raises(WorkloadError, match="differ from document 'a' on"):
        check_workload(shuffled)

    def shorter() -> Workload:
        return dataclasses.replace(GOOD, documents=GOOD.documents[: 1 + next(count) % 2])

    with pytest.raises(WorkloadError, match="different fingerprints"):
        check_workload(shorter)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"description": ""}, "description is not set"),
        ({"name": "a:b"}, "colon"),
        ({"mode": "generation"}, "says mode 'generation'"),
    ],
)
def test_a_source_must_say_what_is_true(change: dict[str, object], message: str) -> None:
    with pytest.raises(WorkloadError, match=message):
        check_workload_source(dataclasses.replace(SOURCE, **change))


def test_a_fingerprint_follows_the_traced_text_only() -> None:
    same = dataclasses.replace(GOOD, name="other", source="there")
    assert same.fingerprint == GOOD.fingerprint
    others = [
        dataclasses.replace(GOOD, documents=GOOD.documents[::-1]),
        dataclasses.replace(GOOD, documents=(Document("a", "A"), Document("b", "b"))),
        dataclasses.replace(GOOD, mode="generation"),
        dataclasses.replace(GOOD, mode="generation", chat=True),
        dataclasses.replace(GOOD, mode="generation", new_tokens=3),
    ]
    assert len({GOOD.fingerprint, *(other.fingerprint for other in others)}) == 6
