"""Folders to a comparison: what is read and refused, the citation, and the time that a hundred rows take."""

from __future__ import annotations

import importlib.metadata
import time
from dataclasses import replace
from pathlib import Path

import pytest
from comparison_traces import bare_row
from study_cases import StudyCase

from comparison_examples import example_comparison, more_models
from offramp.errors import InputError
from offramp.studies.comparison import reading
from offramp.studies.comparison.citation import citation, comparison_key, escaped
from offramp.studies.comparison.reading import read_comparison
from offramp.studies.comparison.results import Comparison, Row


@pytest.fixture
def folders(monkeypatch: pytest.MonkeyPatch):
    """Folders that hold what a test says: rows by the folder's name."""
    contents: dict[Path, Comparison] = {}
    monkeypatch.setattr(reading, "read_study_folder", contents.__getitem__)

    def hold(*rows: Row, **fields) -> Path:
        path = Path(f"folder {len(contents)}")
        contents[path] = Comparison(f"title {len(contents)}", "", rows, **fields)
        return path

    return hold


def test_a_study_is_compared_with_everything(case: StudyCase) -> None:
    found = read_comparison([case.folder.path])
    assert (found.title, found.description) == ("made-up", "Two models on two texts.")
    assert len(found.rows) == 4
    assert {one.basis for one in found.strategies} == {"predicted", "measured"}
    assert {one.kendall.undefined for one in found.validity} == {
        "1 independently trained model; an order needs 3"
    }
    assert len(found.failures) == 4
    started = [" ".join(note.split()[:2]) for note in found.notes]
    assert started == ["alpha ·", "On prose", "On code"]
    assert found.provenance["offramp"] == importlib.metadata.version("offramp")
    assert found.provenance["comparison_key"][:16] in found.citation


def test_a_folder_that_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="there is no study or run here"):
        read_comparison([tmp_path])
    with pytest.raises(InputError, match="there is no such folder") as refused:
        read_comparison([tmp_path / "nowhere"])
    assert refused.value.where == str(tmp_path / "nowhere")


def test_nothing_finished_is_nothing_to_compare(folders) -> None:
    with pytest.raises(InputError, match="no score is finished") as refused:
        read_comparison([folders(failures={"a · prose": "out of memory"})])
    assert "a · prose: out of memory" in refused.value.what
    with pytest.raises(InputError, match="no folder is given") as refused:
        read_comparison([])
    assert refused.value.fix == "give folders of offramp study run and offramp run"


def test_several_folders_become_one_table(folders) -> None:
    one = folders(bare_row("a", "prose"), provenance={"threads": 1}, notes=("first",))
    other = folders(bare_row("b", "prose"), failures={"c · prose": "gone"}, notes=("second",))
    found = read_comparison([one, other])
    assert found.title == "Models compared"
    assert [row.model.name for row in found.rows] == ["a", "b"]
    assert found.notes == ("first", "second")
    assert found.failures == {"c · prose": "gone"}
    assert found.provenance["title 0"] == {"threads": 1}


def test_what_differs_is_refused_unless_mixed(folders) -> None:
    both = [folders(bare_row("a", "prose")), folders(bare_row("b", "prose", tokens=64))]
    with pytest.raises(InputError, match="1,920 and 64 tokens of prose"):
        read_comparison(both)
    found = read_comparison(both, mixed=True)
    assert found.notes[0].startswith("Not of equals: 1,920 and 64 tokens of prose")


def test_the_key_changes_with_any_result_and_with_no_place() -> None:
    comparison = example_comparison()
    key = comparison_key(comparison)
    row = comparison.rows[0]
    moved = replace(row, trace_folder="elsewhere", source="another", notes=("a note",))
    assert comparison_key(replace(comparison, rows=(moved, *comparison.rows[1:]))) == key
    other = replace(row, bits_per_byte=9.0)
    assert comparison_key(replace(comparison, rows=(other, *comparison.rows[1:]))) != key
    assert comparison_key(replace(comparison, strategies=comparison.strategies[1:])) != key
    assert comparison_key(replace(comparison, validity=())) == key  # it follows from the rows
    assert comparison_key(replace(comparison, title="another")) == key


def test_citations_are_bibtex() -> None:
    text = citation("100 % of {models} & more_", "1.2.3", "ab" * 32)
    assert text.count("@misc{") == 2
    assert text.count("@software{") == 1
    assert r"title = {100 \% of \{models\} \& more\_}" in text
    assert "eprint = {2603.23701}" in text
    assert "comparison key abababababababab" in text
    assert "version = {1.2.3}" in text
    unescaped = text.replace(r"\{", "").replace(r"\}", "")
    assert unescaped.count("{") == unescaped.count("}")
    assert escaped("a\\b^~") == r"a\textbackslash{}b\textasciicircum{}\textasciitilde{}"


def test_a_hundred_rows_take_seconds(folders) -> None:
    """The whole report of a hundred cells may take 20 s: statistics must leave room for the page."""
    large = example_comparison(more_models(25), ("prose", "code", "chat", "math"))
    folder = folders(*large.rows, strategies=large.strategies)
    began = time.thread_time()
    found = read_comparison([folder])
    assert time.thread_time() - began < 8.0
    assert len(found.rows) == 100
    assert found.validity
