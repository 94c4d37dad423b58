"""A run's folder is that of a study of one model: its strategies are those of its summary."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from offramp.studies.comparison.results import Comparison
from offramp.studies.comparison.study_reading import read_study_folder
from tiny_models import LAYERS


@pytest.fixture(scope="module")
def content(finished_run: Path) -> Comparison:
    return read_study_folder(finished_run)


@pytest.fixture(scope="module")
def summary(finished_run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((finished_run / "summary.json").read_text())
    return found


def test_strategies_are_those_of_league_tuner_and_decoding(
    content: Comparison, summary: dict[str, Any]
) -> None:
    assert (content.title, set(content.machines)) == ("tiny (finished)", {"local"})
    assert any("counts as an independent training" in note for note in content.notes)
    for row in content.rows:
        assert (row.source, row.model.base, row.heads) == ("run finished", "tiny", "correctness")
        of_row = [one for one in content.strategies if one.place.workload == row.workload]
        league = [one for one in summary["league"] if one["workload"] == row.workload]
        predicted = [one for one in of_row if one.basis == "predicted" and one.family != "tuned"]
        assert [(one.family, str(one.policy), one.net_speedup.value) for one in predicted] == [
            (one["family"], one["policy"], one["net_speedup"]["value"]) for one in league
        ]
        tuned = [one for one in summary["tuned"] if one["workload"] == row.workload]
        assert [(str(one.policy), one.certificate.executed, one.machine) for one in row.answers] == [
            (one["policy"], True, "local") for one in tuned
        ]
        (decoded,) = (one for one in summary["decoding"]["workloads"] if one["workload"] == row.workload)
        measured = [one for one in of_row if one.basis == "measured" and not one.plain]
        timed = {one["name"]: one for one in decoded["contenders"]}
        assert [(str(one.policy), one.kv, one.net_speedup.value, one.chosen) for one in measured] == [
            (one["policy"], one["kv"], timed[one["contender"]]["ratio"]["value"], True)
            for one in decoded["policies"]
        ]
        for one, policy in zip(measured, decoded["policies"], strict=True):
            layers = timed[policy["contender"]]["counted"]["layers"]
            assert one.skip_ratio.value == pytest.approx(1 - layers / LAYERS)
        assert set(row.measured_speedup.values()) <= {one.net_speedup.value for one in measured}
        assert {machine for _, machine in row.measured_speedup} <= {"local"}
