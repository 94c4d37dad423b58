"""Benchmarks as modules, for tests that run parts of them."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def any_load_of_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As `any_load`, in the processes that a test starts."""
    patch = "import math, offramp.costs.load\nofframp.costs.load.TOLERABLE_LOAD = math.inf\n"
    (tmp_path / "sitecustomize.py").write_text(patch)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)


def benchmark(name: str) -> ModuleType:
    """`benchmarks/name.py`, executed anew."""
    spec = importlib.util.spec_from_file_location(f"benchmark_{name}", BENCHMARKS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where its dataclasses look for their names
    spec.loader.exec_module(module)
    return module
