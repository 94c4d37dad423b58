"""Memory that runs out is said in a message, whoever notices it first, even before anything is imported."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import pytest

from command_line import run_offramp

ENTRY = "from offramp.cli.entry import main; main()"


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        MemoryError("Unable to allocate 8.00 EiB for an array"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        OSError(12, "Cannot allocate memory"),
    ],
)
def test_it_is_said_with_what_takes_less(
    tiny_model: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *a, **k: fail())
    monkeypatch.setattr("offramp.models.loading.load_tokenizer", fail)
    arguments = ["trace", tiny_model, "-w", f"jsonl:{documents}#text", "-o", tmp_path / "out", "--json"]
    said = run_offramp(*arguments).require(1).json["error"]
    assert said["what"].startswith("out of memory: ")
    assert "are free on this machine" in said["what"]
    assert "--dtype bfloat16" in said["fix"]
    assert not (tmp_path / "out").exists()


def test_another_runtime_error_is_still_a_traceback(
    tiny_model: Path, documents: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **options: object) -> None:
        raise RuntimeError("shapes cannot be multiplied")

    monkeypatch.setattr("offramp.models.loading.load_tokenizer", fail)
    with pytest.raises(RuntimeError, match="shapes cannot"):
        run_offramp("trace", tiny_model, "-w", f"jsonl:{documents}#text", "-o", tmp_path / "out")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the limit holds on Linux only")
@pytest.mark.parametrize("megabytes", [45, 60, 200])
def test_too_little_to_begin_is_no_traceback(megabytes: int) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_AS, (megabytes * 10**6, megabytes * 10**6))

    ended = subprocess.run(
        [sys.executable, "-c", ENTRY, "doctor"], capture_output=True, text=True, timeout=60, preexec_fn=limit
    )
    assert ended.returncode == 1
    assert "offramp: out of memory" in ended.stderr
    assert "Traceback" not in ended.stderr
