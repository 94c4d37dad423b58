"""Running a small trace into a folder, and comparing and damaging what is there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from killed_runs import LENGTHS
from tracing_models import tiny_llama, workload_of

from offramp.files import read_sealed_json, write_sealed_json
from offramp.tracing.manifest import TIMESTAMPS
from offramp.tracing.part import damaged
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


def fail(*arguments: Any, **keywords: Any) -> None:
    raise ZeroDivisionError


def must_not_run(*arguments: Any, **keywords: Any) -> Any:
    pytest.fail("nothing should be measured here")
