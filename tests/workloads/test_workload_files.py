from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.errors import WorkloadError
from offramp.workloads.registry import load_workload
from offramp.workloads.text_files import ENOUGH_FILES, SHORTEST_PARAGRAPH, paragraphs


def error_of(spec: str) -> str:
    with pytest.raises(WorkloadError) as caught:
        load_workload(spec)
    assert caught.value.exit_code == 2
    return str(caught.value)


def test_a_file_of_one_paragraph_is_one_document(tmp_path: Path) -> None:
    file = tmp_path / "notes.txt"
    file.write_bytes(b"\xef\xbb\xbfGr\xc3\xbc\xc3\x9fe\r\nzwei\n")
    workload = load_workload(f"txt:{file}")
    assert [(document.id, document.text) for document in workload.documents] == [
        ("notes.txt", "Grüße\r\nzwei\n")
    ]
    assert (workload.mode, workload.chat, workload.name) == ("text", False, f"txt:{file}")


def test_a_folder_is_one_document_per_text_in_sorted_order(tmp_path: Path) -> None:
    for name in ("b.txt", "a.md", "c.TXT", "d.rst"):
        (tmp_path / name).write_text(f"text of {name}")
    workload = load_workload(f"txt:{tmp_path}")
    assert [document.id for document in workload.documents] == ["a.md", "b.txt", "c.TXT"]


def test_a_folder_of_too_few_texts_is_split_as_one_text_is(tmp_path: Path) -> None:
    for number in range(ENOUGH_FILES - 1):
        (tmp_path / f"{number:02}.txt").write_text("\n\n".join(["word " * 50] * 2))
    few = load_workload(f"txt:{tmp_path}")
    assert [document.id for document in few.documents[:2]] == ["00.txt:1", "00.txt:3"]
    assert f"{ENOUGH_FILES - 1} texts were split" in few.notes[0]
    (tmp_path / "more.md").write_text("\n\n".join(["word " * 50] * 2))
    assert len(load_workload(f"txt:{tmp_path}").documents) == ENOUGH_FILES
    assert len(load_workload(f"txt:{tmp_path}#paragraphs").documents) == 2 * ENOUGH_FILES


@pytest.mark.parametrize(
    ("files", "spec", "said"),
    [
        ({"d.rst": b"text"}, "", "the folder holds no text files"),
        ({"a.txt": b"text", "b.txt": b"\n \n"}, "", "the file is empty\nwhere: {}/b.txt"),
        ({"notes.txt": b"text"}, "note.txt", "did you mean {}/notes.txt?"),
        ({}, "nowhere/note.txt", "the folder does not exist"),
        ({"a.txt": b"abc\x00def"}, "a.txt", "NUL byte at offset 3"),
        ({"a.txt": b"cafe\xe9 \xe9"}, "a.txt", "byte 0xe9 at offset 4"),
        ({"a.txt": b"\xef\xbb\xbfcafe\xe9 \xe9"}, "a.txt", "byte 0xe9 at offset 7"),
        ({"a.txt": b"text"}, "a.txt#lines", "#paragraphs"),
        ({}, "d/" * 3000, "the path cannot be looked at: File name too long"),
    ],
)
def test_a_bad_text_is_named(tmp_path: Path, files: dict[str, bytes], spec: str, said: str) -> None:
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    assert said.format(tmp_path) in error_of(f"txt:{tmp_path / spec}")


def test_a_link_that_leads_nowhere_is_named_and_not_left_out(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("some words")
    (tmp_path / "b.txt").symlink_to(tmp_path / "gone.txt")
    with pytest.raises(WorkloadError, match="a link that leads nowhere") as caught:
        load_workload(f"txt:{tmp_path}")
    assert caught.value.where == str(tmp_path / "b.txt")


def test_a_file_of_any_size_is_not_read_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("a few words")
    monkeypatch.setattr("offramp.workloads.text_files.LARGEST_FILE", 11)
    assert load_workload(f"txt:{path}").documents[0].text == "a few words"
    monkeypatch.setattr("offramp.workloads.text_files.LARGEST_FILE", 10)
    with pytest.raises(WorkloadError, match="the text cannot be read: it is larger than"):
        load_workload(f"txt:{path}")


def test_a_long_text_is_split_in_one_pass() -> None:
    text = "\n\n".join(["word " * 42] * 40_000)  # counting lines from the top each time took minutes
    started = time.process_time()
    found = list(paragraphs(text))
    assert time.process_time() - started < 10.0
    assert [line for line, _ in found[:3]] == [1, 3, 5]
    assert found[-1][0] == 79_999


def test_paragraphs_by_hand(tmp_path: Path) -> None:
    long_one, long_two = "one " * 60, "two " * 60
    file = tmp_path / "notes.txt"
    file.write_text(f"\nTitle\n\n{long_one}\n \n{long_two}\nstill two\n\n\nend\n")
    workload = load_workload(f"txt:{file}")
    assert workload.documents == load_workload(f"txt:{file}#paragraphs").documents
    assert "split at blank lines into 2 documents" in workload.notes[0]
    whole = load_workload(f"txt:{file}#whole")
    assert ([document.id for document in whole.documents], whole.notes) == (["notes.txt"], ())
    assert [(document.id, document.text) for document in workload.documents] == [
        ("notes.txt:2", f"Title\n\n{long_one.strip()}"),
        ("notes.txt:6", f"{long_two}\nstill two\n\nend"),
    ]
    file.write_bytes(file.read_bytes().replace(b"\n", b"\r"))  # as files of old Macintoshes end lines
    assert load_workload(f"txt:{file}").documents == workload.documents


@given(st.lists(st.sampled_from(["word", "x " * 120, "", " ", "two\nlines"]), min_size=1, max_size=12))
def test_paragraphs_lose_no_word_and_only_a_whole_text_is_short(lines: list[str]) -> None:
    text = "\n".join(lines)
    parts = [part for _, part in paragraphs(text)]
    assert " ".join(parts).split() == text.split()
    assert len(parts) <= 1 or min(len(part) for part in parts) >= SHORTEST_PARAGRAPH
    for line, part in paragraphs(text):
        assert text.split("\n")[line - 1].strip() == part.split("\n")[0].strip()


def test_a_number_sign_may_be_part_of_a_file_name(tmp_path: Path) -> None:
    (tmp_path / "c#paragraphs").write_text("a")
    (tmp_path / "c#").write_text("text")
    assert len(load_workload(f"txt:{tmp_path / 'c#paragraphs'}").documents) == 1
    assert load_workload(f"txt:{tmp_path / 'c#'}").documents[0].id == "c#"


def test_of_json_lines_too_and_without_a_field_it_is_part_of_the_name(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a#b.jsonl", {"text": "one"})
    assert f"write jsonl:{file}#FIELD; the fields of the first line are: text" in error_of(f"jsonl:{file}")
    assert len(load_workload(f"jsonl:{file}#text").documents) == 1
    file.write_text('{"text#2": "some text"}')  # and of a field's
    assert load_workload(f"jsonl:{file}#text#2").documents[0].text == "some text"


def test_a_home_is_found_where_no_shell_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    write_lines(tmp_path / "a.jsonl", {"text": "one"})
    for spec in ("txt:~/a.jsonl", "jsonl:~/a.jsonl#text"):
        assert load_workload(spec).name == spec.replace("~", str(tmp_path))


def write_lines(path: Path, *lines: object) -> Path:
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_json_lines(tmp_path: Path) -> None:
    # U+2028 may stand unescaped in JSON; it ends no line.
    file = write_lines(tmp_path / "a.jsonl", {"text": "one", "id": 7}, "", '{"text": "two\u2028lines"}')
    workload = load_workload(f"jsonl:{file}#text")
    assert [(document.id, document.text) for document in workload.documents] == [
        ("7", "one"),
        ("line 3", "two\u2028lines"),
    ]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{bad", "not JSON: Expecting property name .* column 2"),
        ('{"text": ' + "[" * 100_000, "nested more than 64 deep"),
        ('{"text": "x", "id": ' + "9" * 5000 + "}", "a number that is too large"),
        ([1], "holds a list, not an object"),
        ({"other": "x", "id": 1}, "no field 'text'\nwhere: .*\nwhat to do: its fields are: other, id"),
        ({"text": 3}, "holds a number, not text"),
        ({"text": None}, "holds null, not text"),
        ({"text": True}, "holds true or false, not text"),
        ({"text": "  "}, "is empty"),
        ({"text": "x", "id": "first"}, "is that of line 1 too"),
        ('{"text": "\\ud800"}', "surrogate"),
    ],
)
def test_a_bad_json_line_is_named(tmp_path: Path, line: object, message: str) -> None:
    file = write_lines(tmp_path / "a.jsonl", {"text": "one", "id": "first"}, "", line)
    with pytest.raises(WorkloadError, match=f"(?s){message}") as caught:
        load_workload(f"jsonl:{file}#text")
    assert "line 3" in str(caught.value)


def test_json_lines_without_a_field_list_those_of_the_first_line(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", {"title": "t", "body": "b"})
    for spec in (f"jsonl:{file}", f"jsonl:{file}#"):
        assert "the fields of the first line are: title, body" in error_of(spec)


def test_json_lines_files_are_checked_like_texts(tmp_path: Path) -> None:
    file = write_lines(tmp_path / "a.jsonl", {"text": "one"})
    assert "did you mean" in error_of(f"jsonl:{tmp_path / 'b.jsonl'}#text")
    file.write_text("")
    assert "the file is empty" in error_of(f"jsonl:{file}#text")


class Rows:
    def __init__(self, **columns: list[object]) -> None:
        self.columns = columns
        self.column_names = list(columns)
        self.info = SimpleNamespace(license="cc-by-4.0")

    def __getitem__(self, name: str) -> list[object]:
        return self.columns[name]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in for the package datasets with one data set."""

    def load_dataset(name: str, *, split: str) -> Rows:
        if name != "me/poems":
            raise FileNotFoundError(f"no data set {name}")
        if split == "scripted":
            raise RuntimeError("Dataset scripts are no longer supported")
        if split != "train":
            raise ValueError(f"Unknown split {split!r}")
        return Rows(text=["one", "", "two"], stars=[1, 2, 3])

    module = ModuleType("datasets")
    monkeypatch.setattr(module, "load_dataset", load_dataset, raising=False)
    monkeypatch.setitem(sys.modules, "datasets", module)


@pytest.mark.usefixtures("hub")
def test_a_hub_data_set_is_one_document_per_row() -> None:
    workload = load_workload("hf:me/poems#train#text")
    assert [(document.id, document.text) for document in workload.documents] == [
        ("row 0", "one"),
        ("row 2", "two"),
    ]
    assert workload.licence == "cc-by-4.0"
    assert "me/poems" in workload.source


@pytest.mark.usefixtures("hub")
@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("hf:me/poems", "write hf:dataset#split#field"),
        ("hf:me/poems#train#", "write hf:dataset#split#field"),
        ("hf:you/poems#train#text", "no data set you/poems"),
        ("hf:me/poems#scripted#text", "Dataset scripts are no longer supported"),
        ("hf:me/poems#test#text", "Unknown split 'test'"),
        ("hf:me/poems#train#body", "choose one of: text, stars"),
        ("hf:me/poems#train#stars", "holds int, not text"),
    ],
)
def test_a_bad_hub_data_set(spec: str, message: str) -> None:
    assert message in error_of(spec)


def test_a_hub_data_set_without_the_extra_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    assert "pip install 'offramp[datasets]'" in error_of("hf:me/poems#train#text")
