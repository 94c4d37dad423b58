"""The script for accelerators on a processor, with a tiny shape: it runs through; figures mean nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from benchmark_modules import benchmark


@pytest.mark.slow
@pytest.mark.usefixtures("any_load_of_others")
def test_the_small_form_measures_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = benchmark("accelerator")
    module.main(["--small", "--seconds", "4", "--output", str(tmp_path / "accelerator.json")])
    printed: dict[str, Any] = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert printed == json.loads((tmp_path / "accelerator.json").read_text())
    found = printed["models"]["tiny"]
    # transformers compiles on accelerators only.
    assert set(found["errors"]) == {"compiled"}
    assert set(found["aims"]) == set(printed["aims"]) == set(module.AIMS)
    for name, aim in module.AIMS.items():
        assert found["figures"][name]["value"] is not None
        assert found["aims"][name]["aim"] == aim
        assert found["aims"][name]["reached"] == "open"  # a processor is not what the aim is of
    assert set(found["figures"]["plain_step_seconds"]) == {"1", "2"}
    assert 5 < found["figures"]["check_microseconds"]["operations"] < 50
    assert found["figures"]["defects"] == []


def test_figures_are_held_against_their_aims() -> None:
    judged = benchmark("accelerator").judged
    figures = {
        "tracing_over_floor": {"value": 1.2},
        "tracing_bytes": {"value": 3e9},
        "never_over_fastest": {"value": 1.0, "low": 0.99, "high": 1.02},
        "static_over_ideal": {"value": 1.07, "high": 1.2},
    }
    found = judged(figures, counts=True)
    assert {name: one["reached"] for name, one in found.items()} == {
        "tracing_over_floor": "reached",
        "tracing_bytes": "missed",
        "never_over_fastest": "reached",
        "check_microseconds": "open",
        "static_over_ideal": "reached",
        "profile_error": "open",
    }
    compiled = {"never_over_compiled": {"value": 1.5, "low": 1.4, "high": 1.6}}
    found = judged({**figures, **compiled}, counts=True)["never_over_fastest"]
    assert (found["reached"], found["over"]) == ("missed", "generate(static cache, compiled)")
    assert {one["reached"] for one in judged(figures, counts=False).values()} == {"open"}


def test_a_model_whose_time_is_over_leaves_its_figures_open(tmp_path: Path) -> None:
    module = benchmark("accelerator")
    options = module._options(["--small", "--device", "cpu"])
    options.small = False  # its time is then what it says
    found = module.in_a_process("tiny", options, 0.5)
    assert found["figures"] == {}
    assert set(found["errors"]) == set(module.PARTS)
    assert "ended after" in found["errors"]["tracing"]


def test_what_stops_one_part_leaves_the_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    module = benchmark("accelerator")

    def broken(job: Any) -> dict[str, Any]:
        raise RuntimeError("out of order")

    monkeypatch.setattr(module, "make_model", lambda name, device: None)
    monkeypatch.setattr(module, "PARTS", {"first": broken, "second": lambda job: {"one": 1}})
    module.run_job("tiny", "cpu", module.SMALL, 1.0, tmp_path / "lines")
    lines = [json.loads(line) for line in (tmp_path / "lines").read_text().splitlines()]
    assert lines[1:] == [
        {"part": "first", "error": "RuntimeError: out of order"},
        {"part": "second", "figures": {"one": 1}},
    ]
