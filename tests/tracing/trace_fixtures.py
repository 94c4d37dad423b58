"""Fixtures of the tests of traces on disk; a module that uses them names them at its top."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from killed_runs import PART_ROWS
from stored_traces import run


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
