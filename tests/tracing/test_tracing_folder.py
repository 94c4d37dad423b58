"""Whose folder it is: other requests, other people's files, other processes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import trace_fixtures
from stored_traces import fail, files_of, read_stored, run, write_stored
from tracing_models import llama, tiny_model, workload_of

from offramp.errors import InputError
from offramp.files import TEMPORARY_PREFIX, locked_folder
from offramp.tracing.trace import Trace
from offramp.workloads.shared_text import read_sketch

pytestmark = pytest.mark.usefixtures("one_thread", "small_parts")
finished = trace_fixtures.finished
folder = trace_fixtures.folder
one_thread = trace_fixtures.one_thread
small_parts = trace_fixtures.small_parts


def test_a_newer_schema_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"schema_version": 4', '"schema_version": 9'))
    for attempt in (lambda: Trace.load(folder), lambda: run(folder)):
        with pytest.raises(InputError, match="schema version 9") as caught:
            attempt()
        assert "upgrade" in caught.value.fix


def test_a_trace_of_an_older_schema_holds_no_texts(folder: Path) -> None:
    texts = [document.text for document in Trace.load(folder).documents]
    assert all(text is not None and len(read_sketch(text)) for text in texts)
    manifest = read_stored(folder / "manifest.json")
    for document in manifest["documents"]:
        del document["text"], document["heads_saw"]
    write_stored(folder / "manifest.json", {**manifest, "schema_version": 3})
    found = Trace.load(folder)
    assert [document.text for document in found.documents] == [None] * len(texts)
    assert not any(document.heads_saw for document in found.documents)


@pytest.mark.parametrize(
    ("options", "differs"),
    [
        ({"tokens": 100}, "tokens"),
        ({"exits": "1"}, "exits"),
        ({"context": 20}, "context"),
        ({"document_tokens": 5}, "document_tokens"),
        ({"workload": workload_of("1 2 3")}, "workload"),
        ({"model": tiny_model(llama(), name="another", head_scale=2.0)}, "model"),
    ],
)
def test_a_folder_of_another_request_is_refused_unless_overwritten(
    options: dict[str, Any], differs: str, folder: Path, tmp_path: Path
) -> None:
    before = files_of(folder)
    with pytest.raises(InputError, match=rf"differs in: {differs}\)") as caught:
        run(folder, **options)
    assert caught.value.exit_code == 2
    assert "--overwrite" in caught.value.fix
    assert files_of(folder) == before
    run(folder, overwrite=True, **options)
    run(tmp_path / "fresh", **options)
    assert files_of(folder) == files_of(tmp_path / "fresh")


def test_overwriting_keeps_what_is_not_ours(folder: Path) -> None:
    (folder / "notes.json").write_text("mine")
    run(folder, overwrite=True, tokens=100)
    assert (folder / "notes.json").read_text() == "mine"


def test_a_folder_with_foreign_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not a trace"):
            run(tmp_path, overwrite=overwrite)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("text")
    with pytest.raises(InputError, match="is a file"):
        run(tmp_path / "file")


@pytest.mark.parametrize(
    "options", [{"tokens": 0}, {"exits": "9"}, {"context": 97}, {"workload": workload_of("7", "")}]
)
def test_bad_input_leaves_no_folder_behind(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        run(tmp_path / "trace", **options)
    assert not (tmp_path / "trace").exists()


def test_a_second_process_is_refused(folder: Path) -> None:
    script = (
        "import sys, pathlib; from offramp.files import locked_folder\n"
        "with locked_folder(pathlib.Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    other = subprocess.Popen(
        [sys.executable, "-c", script, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    try:
        with pytest.raises(InputError, match="another offramp process"):
            run(folder)
    finally:
        other.kill()
        other.communicate()
    run(folder)  # the lock ended with its process


def test_the_folder_is_free_again_after_a_failure(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("offramp.tracing.tracer.write_part", fail)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path / "trace")
    with locked_folder(tmp_path / "trace"):
        pass
    run(tmp_path / "trace")


def test_leftovers_of_a_killed_writer_are_swept(folder: Path, tmp_path: Path) -> None:
    leftover = folder / f"{TEMPORARY_PREFIX}123-facts-00000.parquet"
    leftover.write_text("half")
    run(folder)
    assert not leftover.exists()
    only = tmp_path / "only-a-leftover"
    only.mkdir()
    (only / f"{TEMPORARY_PREFIX}9-request.json").write_text("{")
    run(only)
    assert files_of(only) == files_of(folder)


def test_a_request_that_was_refused_later_does_not_hold_the_folder(tmp_path: Path) -> None:
    model = tiny_model(llama(), head_scale=3.0)
    work = workload_of("1 2 3", "4 5 6", mode="generation")
    with pytest.raises(InputError, match="fills the context"):
        run(tmp_path / "trace", model=model, workload=work, tokens=8, context=3)
    assert run(tmp_path / "trace", model=model, workload=work, tokens=8, context=40).token_count > 0


def test_a_trace_says_what_it_holds(folder: Path) -> None:
    loaded = Trace.load(folder)
    assert "tokens of" in repr(loaded)
    assert "max_prob" in dir(loaded)
    with pytest.raises(AttributeError, match="did you mean 'max_prob'"):
        loaded.maxprob  # noqa: B018 - reading it is the test
