"""Traces on disk: round trip, order of writing, full disks, kept answers."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import trace_fixtures
from killed_runs import LENGTHS
from stored_traces import assert_same_trace, fail, files_of, flip, must_not_run, run
from tracing_models import NumberTokenizer, llama, tiny_model, workload_of

from offramp.errors import DamagedFileError, OfframpError
from offramp.files import TEMPORARY_PREFIX
from offramp.tracing import part as part_module
from offramp.tracing.trace import Trace

pytestmark = pytest.mark.usefixtures("one_thread", "small_parts")
finished = trace_fixtures.finished
folder = trace_fixtures.folder
one_thread = trace_fixtures.one_thread
small_parts = trace_fixtures.small_parts


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
    monkeypatch.setattr("offramp.tracing.tracer.make_measurer", must_not_run)
    assert_same_trace(run(folder), Trace.load(folder))
    assert files_of(folder) == before


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
    assert kinds == ["facts", "marginal", "tokens", "part"] * (len(kinds) // 4)


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
        patch.setattr("offramp.tracing.tracer.write_part", fail)
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
        patch.setattr(model.hf, "generate", must_not_run)
        with pytest.raises(DamagedFileError, match="answers"):
            run(place, **options)
        answers.write_bytes(content)
        run(place, **options)
    assert files_of(place) == files_of(undisturbed)
    flip(answers, len(content) // 2)
    run(place, repair=True, **options)
    assert files_of(place).keys() <= files_of(undisturbed).keys()
    assert_same_trace(Trace.load(place), Trace.load(undisturbed))
