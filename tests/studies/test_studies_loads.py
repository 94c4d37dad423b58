"""Loads as an axis of a study: the same answer as `offramp.load` gives, in cells of their own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from fault_studies import copy_traces, plan_into, run_jobs, write_study
from study_files import plan_of, small_world

import offramp
from offramp.errors import InputError
from offramp.report.comparison_data import comparison_tables
from offramp.report.comparison_page import render_comparison
from offramp.studies.comparison.reading import read_folder
from offramp.studies.folder import StudyFolder
from offramp.studies.work.load import LoadWork
from offramp.studies.work.tune import TuneWork
from offramp.tracing.trace import Trace

OPTIONS = {"rates": "1,50", "requests": 20, "seeds": 2, "lengths": "prompt=6,output=5", "rows": 4}
AXES = 'models = ["a"]\nworkloads = ["txt:one.txt"]\nmachines = ["h100"]\n'


def entry(name: str, options: Mapping[str, Any], *policies: str) -> str:
    values = ", ".join(
        f'{key} = "{value}"' if isinstance(value, str) else f"{key} = {value}"
        for key, value in options.items()
    )
    asked = f"policies = {list(policies)}\n" if policies else ""
    return f'\n[[loads]]\nname = "{name}"\n{asked}options = {{ {values} }}\n'


def with_loads(path: Path, *loads: str) -> None:
    path.write_text(path.read_text(encoding="utf-8") + "".join(loads), encoding="utf-8")


@pytest.fixture(scope="module")
def finished(
    tmp_path_factory: pytest.TempPathFactory, undisturbed: StudyFolder, tiny_model: Path, documents: Path
) -> StudyFolder:
    """A study with two loads, whose trace was there."""
    place = tmp_path_factory.mktemp("loads")
    folder = copy_traces(undisturbed, place / "study")
    study = write_study(place / "STUDY.toml", tiny_model, documents, ["league", "tuned"])
    study.write_text(study.read_text(encoding="utf-8").replace("[0.9]", "[0.9, 0.02]"), encoding="utf-8")
    with_loads(
        study,
        entry("steady", OPTIONS, "static:exit=2"),
        entry("bursts", {**OPTIONS, "arrivals": "gamma:cv=4"}),
    )
    assert run_jobs(folder, plan_into(study, folder)) == []
    return folder


def test_the_answer_is_that_of_load(finished: StudyFolder) -> None:
    plan = finished.read_plan()
    cells = {cell.load: cell for cell in plan.cells if cell.kind == "load"}
    assert set(cells) == {"steady", "bursts"}
    task = plan.tasks[cells["steady"].task]
    assert task.recipe["options"] == OPTIONS
    trace = Trace.load(finished.task_folder(plan.tasks[task.needs["trace"]]) / "trace")
    result = finished.result(LoadWork, task)
    asked: dict[str, Any] = {"policy": "static:exit=2", "hardware": "h100", "worth": result.worth}
    assert result == offramp.load(trace, **asked, **OPTIONS)
    assert cells["steady"].name.endswith("load · steady · h100")


def test_the_tuners_answers_keep_their_certificates(finished: StudyFolder) -> None:
    plan = finished.read_plan()
    (task,) = [task for task in plan.tasks.values() if task.recipe.get("policies") == ["tuned"]]
    tuned = [
        answer
        for answer in finished.result(TuneWork, plan.tasks[task.needs["tune"]]).tuned
        if not answer.plain
    ]
    servers = [server for server in finished.result(LoadWork, task).servers if server.role == "policy"]
    assert [server.policy for server in servers] == [str(answer.policy) for answer in tuned]
    assert [server.certificate for server in servers] == [
        f"certified for {100 * answer.floor.value:g} %" for answer in tuned
    ]
    assert servers


def test_they_are_compared(finished: StudyFolder) -> None:
    comparison = read_folder(finished.path)
    assert {(load.load, load.place.machine) for load in comparison.loads} == {
        ("steady", "h100"),
        ("bursts", "h100"),
    }
    for load in comparison.loads:
        assert load.answer.startswith(("pays", "does not pay", "cannot be told", "is inconclusive"))
    page = render_comparison(comparison)
    assert 'href="#loads"' in page
    assert "At which requests per second exits pay, predicted" in page
    assert comparison_tables(comparison)["loads"].num_rows == 2


@pytest.mark.parametrize(
    ("options", "policies", "what", "where"),
    [
        ({"rats": "1"}, ["never"], "a load has no 'rats'", "options"),
        ({"hardware": "h100"}, ["never"], "a load has no 'hardware'", "options"),
        ({"rates": "2,1"}, ["never"], "rates must be rising", "options"),
        ({"rows": 0}, ["never"], "rows must be at least 1", "options"),
        ({"arrivals": "bursts"}, ["never"], "does not say how requests arrive", "options"),
        ({}, ["oracle:which=first_match"], "looks at what no decoder knows", "options"),
        ({}, ["statik:exit=1"], "unknown policy 'statik'", "policies"),
        ({}, ["policy.json"], "names its policies by their texts", "policies"),
        ({}, ["tuned"], "not among the policies", "policies"),
    ],
)
def test_what_no_load_can_be(
    tmp_path: Path, options: Mapping[str, Any], policies: list[str], what: str, where: str
) -> None:
    small_world(tmp_path)
    with pytest.raises(InputError) as error:
        plan_of(tmp_path, f'{AXES}policies = ["league"]\n' + entry("mine", options, *policies))
    assert what in error.value.what
    assert f"loads[1].{where}" in error.value.where


def test_bytes_moved_have_no_seconds(tmp_path: Path) -> None:
    small_world(tmp_path)
    both = AXES.replace('"h100"', '"bytes moved", "h100"') + entry("mine", {}, "never")
    assert [cell.machine for cell in plan_of(tmp_path, both).cells if cell.kind == "load"] == ["h100"]
    with pytest.raises(InputError, match="bytes moved say nothing of a load") as error:
        plan_of(tmp_path, AXES.replace("h100", "bytes moved") + entry("mine", {}, "never"))
    assert "machines" in error.value.where
