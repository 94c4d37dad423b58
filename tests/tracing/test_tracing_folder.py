"""A trace's folder: whose it is, what comes back from it, what else may lie or happen there."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import stored_traces
from killed_runs import LENGTHS, everything
from random_heads import random_heads
from stored_traces import (
    assert_same_trace,
    files_of,
    flip,
    must_not_run,
    read_stored,
    run,
    write_stored,
)
from tracing_models import NumberTokenizer, llama, tiny_llama, tiny_model, workload_of

from offramp.errors import InputError, OfframpError
from offramp.files import TEMPORARY_PREFIX, locked_folder
from offramp.heads.file import write_heads
from offramp.tracing import sealed_parts, tracer
from offramp.tracing.facts import FACTS, HEAD_FACTS, SIGNAL_FACTS
from offramp.tracing.sealed_parts import Part
from offramp.tracing.trace import Trace
from offramp.workloads.shared_text import read_sketch

pytestmark = pytest.mark.usefixtures("one_thread", "small_parts")
finished = stored_traces.finished
folder = stored_traces.folder
one_thread = stored_traces.one_thread
small_parts = stored_traces.small_parts


def test_a_newer_schema_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"schema_version": 4', '"schema_version": 9'))
    for attempt in (lambda: Trace.load(folder), lambda: run(folder)):
        with pytest.raises(InputError, match="schema version 9") as caught:
            attempt()
        assert "upgrade" in caught.value.fix


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
    with pytest.raises(InputError, match=rf"differs in: {differs}\b") as caught:
        run(folder, **options)
    assert caught.value.exit_code == 2
    assert "--overwrite" in caught.value.fix
    assert files_of(folder) == before
    (folder / "notes.json").write_text("mine")
    run(folder, overwrite=True, **options)
    assert (folder / "notes.json").read_text() == "mine"
    (folder / "notes.json").unlink()
    run(tmp_path / "fresh", **options)
    assert files_of(folder) == files_of(tmp_path / "fresh")


def test_an_overwritten_trace_stays_until_the_new_one_is_whole(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where somebody's files have names as its own."""
    mine = ("facts-99999.parquet", "part-mine.json", ".states/mine.bin", ".writing-mine")
    (folder / ".states").mkdir()
    for name in mine:
        (folder / name).write_text("mine")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    measure = tracer.write_part

    def killed(place: Path, part: Part, *more: Any) -> None:
        if part.index == 1:
            raise KeyboardInterrupt
        measure(place, part, *more)

    with monkeypatch.context() as patch:
        patch.setattr(tracer, "write_part", killed)
        with pytest.raises(KeyboardInterrupt):
            run(folder, overwrite=True, exits="1")
    assert {path: path.read_bytes() for path in before} == before
    assert Trace.load(folder).exits.tolist() == [1, 2, 3]
    assert run(folder, overwrite=True, exits="1").folder == folder
    run(tmp_path / "fresh", exits="1")
    assert {name: (folder / name).read_text() for name in mine} == dict.fromkeys(mine, "mine")
    for name in mine:
        (folder / name).unlink()
    (folder / ".states").rmdir()
    assert files_of(folder) == files_of(tmp_path / "fresh")


OTHERS = (
    '{"digest": "sha256:12"}',
    '{"url": "http://a", "sha256": "abc"}',
    '{\n "code": "1f",\n "kind": "training request",\n "model": {},\n "sha256": "2e",\n "versions": {}\n}\n',
)
"""Of other programs and, the last, of another command of offramp's."""


@pytest.mark.parametrize("name", ["manifest.json", "request.json"])
@pytest.mark.parametrize("text", OTHERS)
@pytest.mark.parametrize("options", [{}, {"overwrite": True}, {"repair": True}])
def test_a_folder_of_others_with_a_name_of_a_trace_is_left_alone(
    tmp_path: Path, name: str, text: str, options: dict[str, bool]
) -> None:
    for own in (name, "part-1.json", "answers.json"):
        (tmp_path / own).write_text(text)
    with pytest.raises(InputError, match="files that are not a trace"):
        run(tmp_path, **options)
    names = sorted([name, "part-1.json", "answers.json"])
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(names, text)


@pytest.mark.parametrize("options", [{}, {"exits": "1", "overwrite": True}, {"repair": True}])
def test_a_file_of_others_in_a_trace_is_left_alone(folder: Path, options: dict[str, Any]) -> None:
    (folder / "answers.json").write_text(OTHERS[1])
    before = files_of(folder)
    with pytest.raises(InputError, match=r"did not write stands where answers\.json is written"):
        run(folder, **options)
    assert files_of(folder) == before


def test_a_folder_with_foreign_files_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(InputError, match="not a trace"):
            run(tmp_path, overwrite=overwrite)
    with pytest.raises(InputError, match="is a file"):
        run(tmp_path / "thesis.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


@pytest.mark.parametrize(
    "options", [{"tokens": 0}, {"exits": "9"}, {"context": 97}, {"workload": workload_of("7", "")}]
)
def test_bad_input_leaves_no_folder_behind(options: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(InputError):
        run(tmp_path / "trace", **options)
    assert not (tmp_path / "trace").exists()


def test_a_process_that_has_just_begun_is_named(tmp_path: Path) -> None:
    with locked_folder(tmp_path / "trace"):
        (tmp_path / "trace" / "request.json").write_text("{}")
        with pytest.raises(InputError, match="another offramp process"):
            run(tmp_path / "trace")


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


def test_a_trace_comes_back_from_disk_as_it_was_in_memory(finished: Path) -> None:
    loaded = Trace.load(finished)
    assert_same_trace(loaded, run(None))
    assert loaded.folder == finished
    assert loaded.token_count == sum(LENGTHS) - len(LENGTHS)
    assert len(list(finished.glob("facts-*.parquet"))) >= 4, "several parts, or the kills test nothing"
    with pytest.raises(AttributeError, match="did you mean 'max_prob'"):
        loaded.maxprob  # noqa: B018 - reading it is the test


def test_a_part_of_one_row_comes_back(tmp_path: Path) -> None:
    options = {"workload": workload_of(lengths=(30, 2))}
    run(tmp_path / "trace", **options)
    assert len(list((tmp_path / "trace").glob("facts-*.parquet"))) == 2
    assert_same_trace(Trace.load(tmp_path / "trace"), run(None, **options))


def test_a_finished_trace_is_read_and_not_measured_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(folder)
    monkeypatch.setattr("offramp.tracing.tracer.make_measurer", must_not_run)
    assert_same_trace(run(folder), Trace.load(folder))
    assert files_of(folder) == before


def test_parts_have_page_checksums(finished: Path, tmp_path: Path) -> None:
    """Seen by their effect: a flipped byte in a page is an error even without the manifest's SHA-256."""
    path = Path(shutil.copy(finished / "facts-00000.parquet", tmp_path))
    columns = pq.ParquetFile(path).metadata.row_group(0)
    names = [columns.column(number).path_in_schema for number in range(columns.num_columns)]
    column = columns.column(names.index("max_prob"))
    flip(path, column.data_page_offset + column.total_compressed_size - 3)
    pq.read_table(path, page_checksum_verification=False)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)


@pytest.mark.parametrize("where", ["write", "fsync"])
def test_a_full_disk_is_told_with_sizes_and_leaves_no_temporary_file(
    where: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "trace"
    real_write, real_fsync, calls = sealed_parts._write, os.fsync, 0

    def full(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 7:
            if where == "write":
                arguments[1].write_bytes(b"x" * 1234)
            raise OSError(errno.ENOSPC, "No space left on device")
        (real_write if where == "write" else real_fsync)(*arguments)

    with monkeypatch.context() as patch:
        if where == "write":
            patch.setattr(sealed_parts, "_write", full)
        else:
            patch.setattr(os, "fsync", full)
        with pytest.raises(
            OfframpError, match=r"the disk is full: [\d,]+ bytes of .* [\d,]+ bytes are free"
        ) as caught:
            run(place)
    assert caught.value.exit_code == 1
    if where == "write":
        assert "1,234 bytes" in caught.value.what
    assert not list(place.glob(f"{TEMPORARY_PREFIX}*"))
    run(place)
    assert files_of(place) == files_of(finished)


# -- facts on request, and older traces

ALL_NAMES = (
    *(fact.name for fact in FACTS),
    *(fact.name for name in sorted(SIGNAL_FACTS) for fact in SIGNAL_FACTS[name]),
    *(fact.name for fact in HEAD_FACTS),
)


def test_every_fact_comes_back_from_disk_and_another_request_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extended = tmp_path / "extended"
    run(extended, **everything())
    loaded = Trace.load(extended)
    assert loaded.fact_names == ALL_NAMES
    assert_same_trace(loaded, run(None, **everything()))
    manifest = read_stored(extended / "manifest.json")
    assert [fact["name"] for fact in manifest["facts"]] == list(ALL_NAMES)
    assert manifest["schema_version"] == 4
    monkeypatch.setattr("offramp.tracing.tracer.make_measurer", must_not_run)
    run(extended, **everything())
    for options, differs in [
        ({"signals": "restricted"}, "signals .* heads"),
        ({**everything(), "heads": None}, "heads"),
        ({**everything(), "heads": random_heads(tiny_llama(), [1, 2], seed=1)}, "heads"),
    ]:
        with pytest.raises(InputError, match=f"differs in: {differs}"):
            run(extended, **options)


def test_facts_of_documents_come_back_from_disk(tmp_path: Path) -> None:
    options: dict[str, Any] = {
        "model": tiny_model(llama(), head_scale=3.0, tokenizer=NumberTokenizer()),
        "workload": workload_of("5 6 7", "8 9", "10 11 12 13", mode="generation"),
        "tokens": 20,
        "signals": "all",
    }
    run(tmp_path / "trace", **options)
    loaded, held = Trace.load(tmp_path / "trace"), run(None, **options)
    assert_same_trace(loaded, held)
    stored = loaded.document_fact("prompt_entropy")
    assert stored.dtype == np.float64
    assert np.array_equal(stored, held.document_fact("prompt_entropy"))
    assert len(np.unique(stored)) == len(loaded.documents)
    assert read_stored(tmp_path / "trace" / "manifest.json")["document_facts"] == ["prompt_entropy"]


def test_traces_of_older_schemas_are_read(finished: Path, tmp_path: Path) -> None:
    """3: without texts. 1: no signals or heads in the request, no list of document facts either."""
    old = Path(shutil.copytree(finished, tmp_path / "old"))
    texts = [document.text for document in Trace.load(old).documents]
    assert all(text is not None and len(read_sketch(text)) for text in texts)
    manifest = read_stored(old / "manifest.json")
    for document in manifest["documents"]:
        del document["text"], document["heads_saw"]
    write_stored(old / "manifest.json", {**manifest, "schema_version": 3})
    found = Trace.load(old)
    assert [document.text for document in found.documents] == [None] * len(texts)
    assert not any(document.heads_saw for document in found.documents)
    manifest["schema_version"] = 1
    del manifest["document_facts"], manifest["request"]["signals"], manifest["request"]["heads"]
    write_stored(old / "manifest.json", manifest)
    write_stored(old / "request.json", manifest["request"])
    loaded, new = Trace.load(old), Trace.load(finished)
    assert loaded.fact_names == tuple(fact.name for fact in FACTS)
    for name in loaded.fact_names:
        assert np.array_equal(loaded.fact(name), new.fact(name)), name
    with pytest.raises(InputError, match="does not hold 'logit_gap'") as caught:
        loaded.fact("logit_gap")
    assert caught.value.fix == "trace again with --signals logit_gap"
    assert caught.value.where == str(old)
    with pytest.raises(InputError, match="differs in: signals"):
        run(old)


def test_reading_needs_no_torch(finished: Path, tmp_path: Path) -> None:
    write_heads(random_heads(tiny_llama(), [1]), tmp_path / "heads")
    script = (
        "import sys; from offramp.tracing.trace import Trace; t = Trace.load(sys.argv[1]);"
        "from offramp.heads.file import read_heads; read_heads(sys.argv[2]);"
        "print(t.max_prob.shape, t.marginal.sums.shape);"
        "assert not {'torch', 'transformers', 'sklearn'} & set(sys.modules)"
    )
    command = [sys.executable, "-c", script, str(finished), str(tmp_path / "heads")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"({sum(LENGTHS) - len(LENGTHS)}, 3)")
