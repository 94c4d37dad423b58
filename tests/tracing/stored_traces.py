"""Running a small trace into a folder, and comparing and damaging what is there."""

from __future__ import annotations

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
import pytest
import torch
from killed_runs import LENGTHS, PART_ROWS
from tracing_models import tiny_llama, workload_of

from offramp.files import read_sealed_json, write_sealed_json
from offramp.tracing.manifest import TIMESTAMPS
from offramp.tracing.sealed_parts import damaged
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace


def run(folder: Path | None, **options: Any) -> Trace:
    settings = {"tokens": 500, "context": 30, "progress": False} | options
    model = settings.pop("model", None) or tiny_llama()
    work = settings.pop("workload", None) or workload_of(lengths=LENGTHS)
    return trace(model, work, output=folder, **settings)


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file's bytes; of the manifest without its timestamps."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        content = path.read_bytes()
        if path.name == "manifest.json":
            content = re.sub(rb'"timestamps": \{[^}]*\}', b"", content)
        if path.name != ".lock":
            found[path.name] = content
    return found


def assert_same_trace(left: Trace, right: Trace) -> None:
    for name in ("token", "next_token", "document", "position", "generated", "exits"):
        assert np.array_equal(getattr(left, name), getattr(right, name)), name
    assert left.fact_names == right.fact_names
    for name in left.fact_names:
        assert left.fact(name).dtype == right.fact(name).dtype
        assert np.array_equal(left.fact(name), right.fact(name)), name
    for name in ("sums", "tokens", "block_of_document"):
        assert np.array_equal(getattr(left.marginal, name), getattr(right.marginal, name)), name
    assert left.documents == right.documents
    assert left.shape == right.shape
    assert left.provenance == right.provenance


def read_stored(path: Path) -> dict[str, Any]:
    """A JSON file of a trace, without its seal."""
    return read_sealed_json(path, damaged, apart=(TIMESTAMPS,))


def write_stored(path: Path, value: dict[str, Any]) -> None:
    """A JSON file of a trace with its seal, whatever is in it."""
    write_sealed_json(path, value, apart=(TIMESTAMPS,))


def flip(path: Path, offset: int, bit: int = 0) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1 << bit
    path.write_bytes(content)


def killed_children(folder: Path, kind: str) -> dict[str, int]:
    """Folders of runs that were killed (see `killed_runs.py`), and the signal that ended each."""
    script = Path(__file__).with_name("killed_runs.py")
    path = os.pathsep.join([str(script.parent), *sys.path])
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": path}
    command = [sys.executable, str(script), str(folder), kind]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    ended: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return ended


def fail(*arguments: Any, **keywords: Any) -> None:
    raise ZeroDivisionError


def must_not_run(*arguments: Any, **keywords: Any) -> Any:
    pytest.fail("nothing should be measured here")


@pytest.fixture(scope="module")
def one_thread() -> Iterator[None]:
    """Threads are part of a request, and the killed runs have one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several parts need parts smaller than the real ones."""
    monkeypatch.setattr("offramp.tracing.plan.SMALLEST_PART", PART_ROWS)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, one_thread: None) -> Path:
    """An undisturbed run."""
    folder = tmp_path_factory.mktemp("traces") / "finished"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("offramp.tracing.plan.SMALLEST_PART", PART_ROWS)
        run(folder)
    return folder


@pytest.fixture
def folder(finished: Path, tmp_path: Path) -> Path:
    """A copy of the undisturbed run."""
    return Path(shutil.copytree(finished, tmp_path / "trace"))
