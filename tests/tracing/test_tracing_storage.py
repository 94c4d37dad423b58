"""Traces on disk: round trip, kills, damage, other people's folders, full disks."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from killed_runs import LENGTHS, PART_ROWS
from tracing_models import NumberTokenizer, llama, tiny_llama, tiny_model, workload_of

from offramp.errors import DamagedFileError, InputError, OfframpError
from offramp.files import TEMPORARY_PREFIX, locked_folder
from offramp.tracing import part as part_module
from offramp.tracing.facts import FACTS
from offramp.tracing.part import part_path
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace


@pytest.fixture(autouse=True)
def _one_thread_and_small_parts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Threads are part of a request; several parts need parts smaller than the real ones."""
    monkeypatch.setattr("offramp.tracing.plan.SMALLEST_PART", PART_ROWS)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def run(folder: Path | None, **options: Any) -> Trace:
    settings = {"tokens": 500, "context": 30, "progress": False} | options
    model = settings.pop("model", None) or tiny_llama()
    work = settings.pop("workload", None) or workload_of(lengths=LENGTHS)
    return trace(model, work, output=folder, **settings)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file's bytes; of the manifest without its timestamps."""
    found = {}
    for path in sorted(folder.rglob("*")):
        content = path.read_bytes()
        if path.name == "manifest.json":
            content = re.sub(rb'"timestamps": \{[^}]*\}', b"", content)
        if path.name != ".lock":
            found[path.name] = content
    return found


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("traces") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("offramp.tracing.plan.SMALLEST_PART", PART_ROWS)
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        run(folder)
        torch.set_num_threads(threads)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the undisturbed run."""
    return Path(shutil.copytree(finished, tmp_path / "trace"))


def assert_same_trace(left: Trace, right: Trace) -> None:
    for name in ("token", "next_token", "document", "position", "generated", "exits"):
        assert np.array_equal(getattr(left, name), getattr(right, name)), name
    for fact in FACTS:
        assert left.fact(fact.name).dtype == right.fact(fact.name).dtype
        assert np.array_equal(left.fact(fact.name), right.fact(fact.name)), fact.name
    for name in ("sums", "tokens", "block_of_document"):
        assert np.array_equal(getattr(left.marginal, name), getattr(right.marginal, name)), name
    assert left.documents == right.documents
    assert left.shape == right.shape
    assert left.provenance == right.provenance


# -- round trip


def test_a_trace_comes_back_from_disk_as_it_was_in_memory(finished: Path) -> None:
    loaded = Trace.load(finished)
    assert_same_trace(loaded, run(None))
    assert loaded.folder == finished
    assert loaded.token_count == sum(LENGTHS) - len(LENGTHS)
    assert len(list(finished.glob("facts-*.parquet"))) >= 4, "several parts, or the kills test nothing"


def test_two_runs_give_the_same_bytes(finished: Path, tmp_path: Path) -> None:
    run(tmp_path / "second")
    assert files_of(tmp_path / "second") == files_of(finished)


def test_a_finished_trace_is_read_and_not_measured_again(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = files_of(folder)
    monkeypatch.setattr("offramp.tracing.tracer.make_measurer", _must_not_run)
    assert_same_trace(run(folder), Trace.load(folder))
    assert files_of(folder) == before


def _must_not_run(*arguments: Any, **keywords: Any) -> Any:
    pytest.fail("nothing should be measured here")


def test_reading_needs_no_torch(finished: Path) -> None:
    script = (
        "import sys; from offramp.tracing.trace import Trace; t = Trace.load(sys.argv[1]);"
        "print(t.max_prob.shape, t.marginal.sums.shape);"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", script, str(finished)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"({sum(LENGTHS) - len(LENGTHS)}, 3)")


def test_the_manifest_is_written_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[str] = []
    real = os.replace

    def replace(source: Any, target: Any) -> None:
        written.append(Path(target).name)
        real(source, target)

    monkeypatch.setattr(os, "replace", replace)
    run(tmp_path / "trace")
    assert written[0] == "request.json"
    assert written[-1] == "manifest.json"
    assert written.count("manifest.json") == 1
    kinds = [name.split("-")[0] for name in written[1:-1]]
    assert kinds == ["facts", "marginal", "tokens"] * (len(kinds) // 3)


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


# -- kills


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, int]]:
    """Folders of runs that were killed, and the signal that ended each."""
    folder = tmp_path_factory.mktemp("killed")
    script = Path(__file__).with_name("killed_runs.py")
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(script.parent)}
    done = subprocess.run(
        [sys.executable, str(script), str(folder)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return folder, json.loads(done.stdout.splitlines()[-1])


def test_a_killed_run_resumes_to_the_same_bytes(killed: tuple[Path, dict[str, int]], finished: Path) -> None:
    folder, ended = killed
    whole = files_of(finished)
    assert files_of(folder / "timed") == whole, "another process gives the same bytes"
    assert sum(signal == 9 for signal in ended.values()) >= 25
    unfinished = leftovers = 0
    for name in ended:
        place = folder / name
        unfinished += not (place / "manifest.json").exists()
        leftovers += any(place.glob(f"{TEMPORARY_PREFIX}*")) if place.exists() else 0
        run(place)
        assert files_of(place) == whole, name
    assert unfinished >= 20
    assert leftovers >= 10, "some kills must leave a temporary file, which the resumed run sweeps"


def test_a_resumed_run_measures_only_what_is_missing(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = files_of(folder)
    (folder / "manifest.json").unlink()
    for kind in ("tokens", "marginal"):
        part_path(folder, kind, 2).unlink()
    measured: list[int] = []
    real = part_module.write_part

    def write(folder: Path, part: Any, *arguments: Any) -> None:
        measured.append(part.index)
        real(folder, part, *arguments)

    monkeypatch.setattr("offramp.tracing.tracer.write_part", write)
    run(folder)
    assert measured == [2]
    assert files_of(folder) == whole


def test_an_interrupt_leaves_a_folder_that_can_be_resumed(
    finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = part_module._write
    calls = 0

    def write(table: Any, path: Path) -> None:
        nonlocal calls
        calls += 1
        real(table, path)
        if calls == 5:
            raise KeyboardInterrupt

    monkeypatch.setattr(part_module, "_write", write)
    place = tmp_path / "trace"
    with pytest.raises(KeyboardInterrupt):
        run(place)
    assert not list(place.glob(f"{TEMPORARY_PREFIX}*"))
    with pytest.raises(InputError, match="not finished") as caught:
        Trace.load(place)
    assert "run the same offramp trace command again" in caught.value.fix
    run(place)
    assert files_of(place) == files_of(finished)


# -- damage


def flip(path: Path, offset: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


@pytest.mark.parametrize("kind", ["facts", "marginal", "tokens"])
def test_a_flipped_byte_in_a_part_is_named_and_repaired(
    kind: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = files_of(folder)
    path = part_path(folder, kind, 1)
    size = path.stat().st_size
    for offset in {0, 4, size // 3, size // 2, size - 40, size - 1}:
        flip(path, offset)
        for attempt in (lambda: Trace.load(folder), lambda: run(folder)):
            with pytest.raises(DamagedFileError, match=path.name) as caught:
                attempt()
            assert caught.value.exit_code == 1
            assert caught.value.where == str(path)
            assert "--repair" in caught.value.fix
        run(folder, repair=True)
        assert files_of(folder) == whole


@pytest.mark.parametrize("name", ["manifest.json", "request.json"])
def test_a_flipped_byte_in_a_json_file_is_named_and_repaired(name: str, folder: Path) -> None:
    whole = files_of(folder)
    path = folder / name
    content = path.read_bytes()
    timestamps = re.search(rb'"timestamps": \{[^}]*\}', content)
    own_seal_left_out = range(*timestamps.span()) if timestamps else range(0)
    for offset in range(0, len(content), 41 if name == "manifest.json" else 13):
        if offset in own_seal_left_out:
            continue
        flip(path, offset, bit=offset % 7)
        with pytest.raises(OfframpError, match=rf"{name}|schema version"):
            run(folder)
        path.write_bytes(content)
    flip(path, 30)
    with pytest.raises(DamagedFileError, match=name) as caught:
        run(folder)
    assert "--repair" in caught.value.fix
    run(folder, repair=True)
    assert files_of(folder) == whole


@pytest.mark.parametrize("kind", ["facts", "marginal", "tokens"])
def test_a_truncated_or_missing_file_is_named_and_repaired(kind: str, folder: Path) -> None:
    whole = files_of(folder)
    path = part_path(folder, kind, 0)
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(DamagedFileError, match=path.name):
        Trace.load(folder)
    run(folder, repair=True)
    path.unlink()
    with pytest.raises(DamagedFileError, match=f"{path.name}: the file is missing"):
        run(folder)
    run(folder, repair=True)
    assert files_of(folder) == whole


def test_damage_met_while_resuming_is_traced_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = files_of(folder)
    (folder / "manifest.json").unlink()
    path = part_path(folder, "facts", 3)
    flip(path, path.stat().st_size // 2)
    run(folder)
    assert f"traced again: a file of the trace is damaged: {path.name}" in capsys.readouterr().err
    assert files_of(folder) == whole


def test_a_part_of_another_trace_is_not_taken_over(folder: Path, tmp_path: Path) -> None:
    whole = files_of(folder)
    other = tmp_path / "other"
    run(other, exits=[1])
    (folder / "manifest.json").unlink()
    shutil.copy(part_path(other, "tokens", 1), part_path(folder, "tokens", 1))
    run(folder)
    assert files_of(folder) == whole


# -- whose folder


def test_a_newer_schema_is_refused(folder: Path) -> None:
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"schema_version": 1', '"schema_version": 9'))
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
        patch.setattr("offramp.tracing.tracer.write_part", _fail)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path / "trace")
    with locked_folder(tmp_path / "trace"):
        pass
    run(tmp_path / "trace")


def _fail(*arguments: Any, **keywords: Any) -> None:
    raise ZeroDivisionError


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


# -- full disk


@pytest.mark.parametrize("where", ["write", "fsync"])
def test_a_full_disk_is_told_with_sizes_and_leaves_no_temporary_file(
    where: str, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = tmp_path / "trace"
    real_write, real_fsync, calls = part_module._write, os.fsync, 0

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
            patch.setattr(part_module, "_write", full)
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


# -- answers


def test_kept_answers_are_used_after_an_interrupt_and_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(llama(), head_scale=3.0, tokenizer=NumberTokenizer())
    work = workload_of("5 6 7", "8 9", "10 11 12 13", mode="generation")
    options = {"model": model, "workload": work, "tokens": 20}
    undisturbed = tmp_path / "undisturbed"
    run(undisturbed, **options)
    place = tmp_path / "trace"
    with monkeypatch.context() as patch:
        patch.setattr("offramp.tracing.tracer.write_part", _fail)
        with pytest.raises(ZeroDivisionError):
            run(place, **options)
    answers = place / "answers.json"
    content = answers.read_bytes()
    for offset in range(0, len(content), 17):
        flip(answers, offset)
        with pytest.raises(DamagedFileError, match="answers"):
            run(place, **options)
        answers.write_bytes(content)
    flip(answers, len(content) // 2)
    with monkeypatch.context() as patch:
        patch.setattr(model.hf, "generate", _must_not_run)
        with pytest.raises(DamagedFileError, match="answers"):
            run(place, **options)
        answers.write_bytes(content)
        run(place, **options)
    assert files_of(place) == files_of(undisturbed)
    flip(answers, len(content) // 2)
    run(place, repair=True, **options)
    assert files_of(place).keys() <= files_of(undisturbed).keys()
    assert_same_trace(Trace.load(place), Trace.load(undisturbed))
