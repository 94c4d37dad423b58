"""Bench results as files: all of it comes back, and nothing else is taken for one."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from bench_cases import made_up_result

from offramp.errors import DamagedFileError
from offramp.kit.typed import from_json, to_json
from offramp.policies.figures import FreeRunning
from offramp.scoring.estimate import Estimate
from offramp.timing.results import (
    RESULTS,
    BenchResult,
    Contender,
    FloorCheck,
    Forecast,
    PartError,
    contenders_json,
)


def full_result() -> BenchResult:
    """A result with every part that there can be."""
    interval = Estimate(0.95, 0.9, 1.0)
    forecast = Forecast(
        "static:exit=2", "propagate", "float32", "prose", 0.1, 0.2, interval, 0.3, 0.4, 0.5, None, 0.5,
        parts=(PartError("layers", 0.1, 0.2), PartError("probes", 0.0, 0.0)),
    )  # fmt: skip
    quality = FreeRunning(interval, Estimate(0.5), interval, interval, interval, 2, 16)
    return dataclasses.replace(
        made_up_result(Contender("a peer", "peer", left_out="it cannot")),
        forecasts=(forecast,), free_running=quality, notes=("a", "b"),
        floor=FloorCheck("agreement=0.95", True, 0.95, Estimate(0.96, 0.9, 1.0)),
        processes=3, defects=("something",),
    )  # fmt: skip


def test_results_survive_json(tmp_path: Path) -> None:
    plain, full = made_up_result(), full_result()
    for result in (plain, full):
        assert from_json(BenchResult, json.loads(json.dumps(to_json(result)))) == result
    path = tmp_path / "bench.json"
    RESULTS.write(path, (plain, full))
    assert RESULTS.read(path) == (plain, full)
    kept = json.loads(path.read_text())["results"][0]
    assert len(kept["contenders"][0]["samples"]) == len(kept["contenders"][0]["clusters"]) == 3
    assert (kept["answer"], kept["resolution"]) == ("faster", 0.05)


def test_a_result_from_before_figures_said_why_they_have_no_interval_is_read() -> None:
    def before(value: Any) -> Any:
        if isinstance(value, list):
            return [before(part) for part in value]
        if not isinstance(value, dict):
            return value
        return {
            name: before(part) for name, part in value.items() if name not in ("undefined", "no_interval")
        }

    result = full_result()
    old = before(to_json(result))
    assert set(old["a_a"]) == {"value", "low", "high"}
    assert from_json(BenchResult, old) == result


def test_contenders_in_one_line_each() -> None:
    policy, plain, again = contenders_json(full_result())  # what was left out has no answer
    assert policy["name"] == "static:exit=3 (propagate)"
    assert (policy["answer"], policy["ratio"], policy["low"], policy["high"]) == ("faster", 2.0, 1.9, 2.1)
    assert policy["executed_agreement"] == 0.9
    assert policy["gain"] == {"layers": 0.4, "head": 0.1, "probes": 0.0}
    assert policy["counted"] == {"layers": 3.0, "heads": 1.0, "probes": 0.0, "flops": 1e6, "bytes": 2e6}
    assert (plain["gain"], plain["counted"], again["role"]) == (None, None, "a/a")


@pytest.mark.parametrize(("kept", "missed"), [(0.96, False), (0.95, False), (0.78, True), (None, None)])
def test_a_floor_is_missed_by_what_was_kept(kept: float | None, missed: bool | None) -> None:
    found = FloorCheck("agreement=0.95", True, 0.95, None if kept is None else Estimate(kept))
    assert found.missed is missed


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", '{"schema_version": 9}', '{"schema_version": 1, "results": []}']
)
def test_a_file_of_something_else_or_of_an_older_schema_is_refused(tmp_path: Path, content: str) -> None:
    path = tmp_path / "bench.json"
    path.write_text(content)
    with pytest.raises(DamagedFileError, match=r"no file of offramp bench|schema version is") as caught:
        RESULTS.read(path)
    assert '"schema' not in content or "offramp bench MODEL --policy P -o FILE" in caught.value.fix


def test_a_not_a_number_is_not_written(tmp_path: Path) -> None:
    broken = dataclasses.replace(made_up_result(), a_a=Estimate(float("nan")))
    with pytest.raises(ValueError, match="not JSON compliant"):
        RESULTS.write(tmp_path / "bench.json", (broken,))
    assert list(tmp_path.iterdir()) == []
