"""A small study of the lab from its file to its table: trained, killed, gone on with, measured, reported."""

from __future__ import annotations

import csv
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from lab_studies import SMOKE

import offramp
from command_line import PROGRAM, run_offramp
from offramp.lab.training.recipe import Recipe
from offramp.lab.training.record import RECORD
from offramp.lab.training.train import train
from offramp.models.memory import with_threads
from offramp.studies.folder import StudyFolder
from offramp.studies.task import Plan

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """The folder of the study, which was killed as soon as a training had kept a first model."""
    place = tmp_path_factory.mktemp("lab")
    (place / "STUDY.toml").write_text(SMOKE, encoding="utf-8")
    folder = StudyFolder(place / "study")
    command = [*PROGRAM, "study", "run", str(place / "STUDY.toml"), "-o", str(folder.path)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        while not [*folder.path.glob("tasks/train/*/model@*/training.json")]:
            assert process.poll() is None, "it ended before it was killed"
            time.sleep(0.02)
        os.kill(process.pid, signal.SIGKILL)
    return folder


@pytest.fixture(scope="module")
def finished(killed: StudyFolder) -> tuple[StudyFolder, Plan]:
    """The same, gone on with to its end."""
    begun = killed.finished()
    assert [kind for kind, _ in begun] == ["text"]
    ran = run_offramp("study", "run", killed.path.parent / "STUDY.toml", "-o", killed.path, "--json").require(
        0
    )
    assert ran.json["counts"] == {"done": ran.json["tasks"]}
    return killed, killed.read_plan()


def test_killed_and_gone_on_with_it_trains_what_a_recipe_alone_does(
    finished: tuple[StudyFolder, Plan], tmp_path: Path
) -> None:
    folder, plan = finished
    started = [event.task for event in folder.journal.read().events if event.event == "started"]
    trained = {name: plan.tasks[run["train"]] for name, run in plan.study["runs"].items()}
    assert {name: plan.study["runs"][name]["seed"] for name in trained} == {"run-01": 1, "run-16": 16}
    assert max(started.count(task.key) for task in trained.values()) >= 2
    (text,) = (task for task in plan.tasks.values() if task.kind == "text")
    for name, task in trained.items():
        place = str(folder.task_folder(text) / "text")
        with with_threads(1):
            record = train(Recipe.model_validate({**task.recipe["recipe"], "text": place}), tmp_path / name)
        kept = folder.task_folder(task) / "model"
        for step in (*(f"@{step}" for step in record.recipe.schedule[:-1]), ""):
            ours, alone = (Path(f"{one}{step}") / "model.safetensors" for one in (kept, tmp_path / name))
            assert ours.read_bytes() == alone.read_bytes()
    model = offramp.load_model(kept)
    assert (len(model.stack), model.stack.largest_difference) == (4, 0.0)
    sizes = [RECORD.read(tmp_path / name / "training.json").parameters for name in trained]
    assert abs(sizes[1] / sizes[0] - 1) < 0.01


def test_the_report_has_a_line_for_each_kept_model(finished: tuple[StudyFolder, Plan]) -> None:
    folder, plan = finished
    lines = list(csv.DictReader((folder.path / "tables" / "runs.csv").open(encoding="utf-8")))
    assert [(line["run"], line["step"]) for line in lines] == [
        (name, step) for name in ("run-01", "run-16") for step in ("19", "39", "79")
    ]
    for line in lines:
        assert 2.0 < float(line["loss"]) < 6.5
        assert 0.0 <= float(line["representation"]) <= 1.0
    assert {(line["block"], line["layers"], line["hidden"]) for line in lines} == {("1", "4", "48")}
    assert "nothing can be concluded" in plan.study["notes"][0]
    shown = {path.name for path in (folder.path / "models").iterdir()}
    assert shown == {f"run-{run}{step}" for run in ("01", "16") for step in ("", "@19", "@39")}
    assert RECORD.read(folder.path / "models" / "run-16@19" / "training.json").step == 19
    assert "gate" in (folder.path / "report.html").read_text(encoding="utf-8")


def test_a_finished_study_is_left_as_it_is(finished: tuple[StudyFolder, Plan]) -> None:
    folder, _ = finished
    file = folder.path.parent / "STUDY.toml"
    events = len(folder.journal.read().events)
    run_offramp("study", "run", file, "-o", folder.path).require(0)
    assert len(folder.journal.read().events) == events
    status = run_offramp("study", "status", file, "-o", folder.path, "--verify", "--json").require(0).json
    assert (status["seconds_left"], status["damaged"]) == (0, [])


def test_a_damaged_model_is_trained_again_to_the_same(finished: tuple[StudyFolder, Plan]) -> None:
    folder, plan = finished
    file = folder.path.parent / "STUDY.toml"
    task = plan.tasks[plan.study["runs"]["run-16"]["train"]]
    weights = folder.task_folder(task) / "model" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert run_offramp("study", "status", file, "-o", folder.path, "--verify").require(1)
    run_offramp("study", "run", file, "-o", folder.path).require(0)
    assert weights.read_bytes() == content


def test_what_cannot_be_had_is_named_and_the_rest_is_planned(tmp_path: Path) -> None:
    (tmp_path / "STUDY.toml").write_text(
        SMOKE.replace('sources = ["standard-library"', f'folders = ["{tmp_path}"]\nsources = ["perl-doc"'),
        encoding="utf-8",
    )
    command = ("study", "plan", tmp_path / "STUDY.toml", "-o", tmp_path / "study", "--json")
    planned = run_offramp(*command).require(0).json
    assert set(planned["unavailable"]) == {"perl-doc"}
    assert planned["counts"] == {"to do": 1}
    assert planned["to_come"] == 10
