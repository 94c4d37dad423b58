"""Bench results as files: all of it comes back, and nothing else is taken for one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from bench_cases import fakes, result_of

from offramp.decoding.bench.result_file import from_json, read_results, to_json, write_results
from offramp.decoding.bench.results import BenchResult, Forecast, FreeRunning, Interval, PartError, TaskScore
from offramp.errors import DamagedFileError


def full_result() -> BenchResult:
    """A result with every part that there can be."""
    interval = Interval(1.0, 0.9, 1.1)
    forecast = Forecast(
        "static:exit=2", "propagate", "float32", "prose", 0.1, 0.2, interval, 0.3, 0.4, 0.5, None, 0.5,
        parts=(PartError("layers", 0.1, 0.2), PartError("probes", 0.0, 0.0)),
    )  # fmt: skip
    quality = FreeRunning(interval, Interval(0.5), interval, interval, interval, 2, 16)
    task = TaskScore("a task", 9, interval, interval, Interval(0.1), 0.5)
    return dataclasses.replace(
        result_of(fakes()), forecasts=(forecast,), free_running=quality, tasks=(task, task), notes=("a", "b")
    )


def test_results_survive_json(tmp_path: Path) -> None:
    plain, full = result_of(fakes()), full_result()
    for result in (plain, full):
        assert from_json(json.loads(json.dumps(to_json(result)))) == result
    path = tmp_path / "bench.json"
    write_results(path, [plain, full])
    assert read_results(path) == (plain, full)
    assert len(json.loads(path.read_text())["results"][0]["contenders"][0]["samples"]) == 6


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"schema_version": 9}', '{"schema_version": 1, "results": [{}]}']
)
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(content)
    with pytest.raises(DamagedFileError, match="no file of offramp bench"):
        read_results(path)


def test_a_not_a_number_is_not_written(tmp_path: Path) -> None:
    broken = dataclasses.replace(result_of(fakes()), a_a=Interval(float("nan")))
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_results(tmp_path / "bench.json", [broken])
    assert list(tmp_path.iterdir()) == []
