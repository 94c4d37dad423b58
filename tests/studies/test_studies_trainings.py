"""Trainings of a study: their rows and tasks, the exits they give, what a kill leaves, who saw which text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from fault_studies import plan_into, run_jobs
from study_files import SETTINGS, plan_of, small_world, study_of
from work_cases import files_of

import offramp
from offramp.defaults import TRAINING_MINUTES, TRAINING_ROWS
from offramp.files import locked_folder
from offramp.heads.file import read_heads
from offramp.report.comparison_data import comparison_tables
from offramp.studies.comparison.reading import read_comparison
from offramp.studies.folder import StudyFolder
from offramp.studies.named_inputs import Fingerprints, find_everything
from offramp.studies.plan import make_plan
from offramp.studies.runner import run_job
from offramp.studies.study import StudyPlan
from offramp.studies.study_checks import read_study
from offramp.studies.task import Task
from offramp.studies.work.heads import TRAINING_COST, Training
from offramp.studies.work.inputs import EXITS
from offramp.studies.work.tune import TuneWork
from offramp.tracing.loading import load_model
from offramp.tracing.trace import Trace
from offramp.training import loop
from offramp.training.loop import Steps
from offramp.training.record import RECORD
from tiny_models import write_documents

STEPS = 12
STUDY = """
policies = ["tuned"]
machines = ["h100"]

[study]
name = "trained"
tokens = 2400
threads = 1
exits = [1, 2]
floors = [0.5]
draws = 40

[[models]]
name = "tiny"
source = "{model}"

[[workloads]]
name = "texts"
source = "jsonl:{documents}#text"

[[trainings]]
name = "none"

[[trainings]]
name = "block"
kind = "block"
steps = {steps}
tokens = 1500
units = 16
precision = "float32"
"""
FILE = "exits/exits.safetensors"
Done = tuple[StudyFolder, StudyPlan]


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    """Threads are part of a recipe, and work sets them."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def texts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_documents(tmp_path_factory.mktemp("texts") / "texts.jsonl", documents=60)


@pytest.fixture(scope="module")
def study_file(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, texts: Path) -> Path:
    path = tmp_path_factory.mktemp("study") / "STUDY.toml"
    path.write_text(STUDY.format(model=tiny_model, documents=texts, steps=STEPS))
    return path


@pytest.fixture(scope="module")
def done(study_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Done:
    """The study, finished. Tests that change it run one of their own."""
    folder = StudyFolder(tmp_path_factory.mktemp("studies") / "trained")
    plan = plan_into(study_file, folder)
    assert run_jobs(folder, plan) == []
    assert [folder.failure(task) for task in plan.tasks.values() if not folder.is_done(task)] == []
    return folder, plan


@pytest.mark.parametrize(("exits", "rated"), [("[2]", False), ("[1, 2]", True), ('"all"', True)])
def test_candidates_of_the_only_exit_say_nothing_of_a_later_one(
    tmp_path: Path, exits: str, rated: bool
) -> None:
    text = 'models = ["a"]\nworkloads = ["txt:one.txt"]\n[[trainings]]\nname = "block"\nkind = "block"\n'
    study = study_of(small_world(tmp_path), text, f"{SETTINGS}exits = {exits}\n")
    facts = find_everything(study, Fingerprints(), download=False).heads["block"].facts
    assert ("candidate_score" in facts) is rated
    assert "correctness" in facts


def tasks_of(plan: StudyPlan, kind: str) -> list[Task]:
    return [task for task in plan.tasks.values() if task.kind == kind]


def test_exits_are_those_of_the_public_api_and_what_they_took_is_kept(
    done: Done, tiny_model: Path, texts: Path
) -> None:
    folder, plan = done
    (task,) = tasks_of(plan, "training")
    there = folder.task_folder(task)
    expected = offramp.train_exits(
        load_model(str(tiny_model)),
        f"jsonl:{texts}#text",
        at="1,2",
        kind="block",
        steps=STEPS,
        tokens=1500,
        units=16,
        precision="float32",
        progress=False,
    )
    assert read_heads(there / EXITS).fingerprint == expected.heads.fingerprint
    assert files_of(there).keys() == {
        *("exits/.offramp.json", "exits/exits.safetensors", "exits/request.json", "exits/training.json"),
        *("manifest.json", "training.json"),
    }
    took, rows = TRAINING_COST.read(there / "training.json"), expected.record.rows
    assert took == Training("block", (1, 2), rows.tokens, STEPS, took.seconds, rows=STEPS * TRAINING_ROWS)
    spent = RECORD.read(there / EXITS / "training.json").seconds
    assert took.seconds == pytest.approx(spent.states + spent.training + spent.heads)
    assert min(spent.states, spent.training, spent.heads) > 0.0


def test_tuning_leaves_out_documents_that_training_saw(done: Done) -> None:
    folder, plan = done
    left_out = {}
    for cell in plan.cells:
        if cell.kind == "tune":
            task = plan.tasks[cell.task]
            trace = Trace.load(folder.task_folder(plan.tasks[task.needs["trace"]]) / "trace")
            seen = sum(one.heads_saw for one in trace.documents)
            (tuned,) = folder.result(TuneWork, task).tuned
            assert tuned.documents["heads"] == seen
            kept = sum(count for part, count in tuned.documents.items() if part != "heads")
            assert kept == len(trace.documents) - seen
            left_out[cell.training] = seen
    assert left_out[""] == 0
    assert left_out["block"] > 5


def test_rows_of_one_model_stand_beside_each_other_with_cost_and_readings(done: Done) -> None:
    comparison = read_comparison([done[0].path])
    raw, trained = sorted(comparison.rows, key=lambda row: row.heads)
    assert (raw.heads, raw.training, raw.card.readings) == ("", None, None)
    assert trained.heads == "block"
    assert trained.training is not None
    assert trained.training.rows == STEPS * TRAINING_ROWS
    assert trained.card.readings is not None
    assert "trained" in trained.card.readings.through
    (answer,) = comparison.trained
    assert (answer.place.heads, str(answer.floor)) == ("block", "agreement=0.5")
    assert answer.place.machine == "h100"
    assert answer.untrained is not None
    assert answer.plain_seconds is not None
    (line,) = comparison_tables(comparison)["trainings"].to_pylist()
    assert (line["kind"], line["exits"], line["steps"]) == ("block", "1+2", STEPS)
    assert line["training_seconds"] == trained.training.seconds


def test_a_killed_training_goes_on_to_the_same_exits_and_leftovers_are_replaced(
    done: Done, study_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "WRITING_SHARE", 1e9)
    folder = StudyFolder(tmp_path / "killed")
    plan = plan_into(study_file, folder)
    (task,) = tasks_of(plan, "training")
    (job,) = [job for job in plan.jobs if task in job.tasks]
    left, step, began = folder.task_folder(task) / EXITS, Steps.step, []
    left.mkdir(parents=True)
    (left / "request.json").write_text("{}")  # damaged, or of another training: the rest of an earlier try

    def killed(self: Steps, number: int) -> bool:
        began.append(number)
        if number == 7:
            raise KeyboardInterrupt
        return step(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Steps, "step", killed)
        with pytest.raises(KeyboardInterrupt):
            run_job(job, folder)
    assert began == [*range(8)]
    # What another process writes into is no leftover, but an error that the journal shows.
    with locked_folder(left):
        assert run_job(job, folder).failed == (task.key,)
    failure = folder.failure(task)
    assert failure is not None
    assert (failure.what, failure.where) == (
        "another offramp process is writing into this folder",
        str(left),
    )
    assert failure.what in folder.journal.path.read_text()
    folder.forget_failure(task)
    assert (left / "checkpoint.safetensors").is_file()

    def going_on(self: Steps, number: int) -> bool:
        began.append(number)
        return step(self, number)

    monkeypatch.setattr(Steps, "step", going_on)
    assert run_job(job, folder).done == (task.key,)
    assert began == [*range(8), *range(7, STEPS)]
    assert not (left / "checkpoint.safetensors").exists()
    whole, again = (files_of(one.task_folder(task))[FILE] for one in (done[0], folder))
    assert again == whole
    # One that was killed before it was vouched for is read; one whose bytes changed is made again.
    (folder.task_folder(task) / "manifest.json").unlink()
    assert run_job(job, folder).done == (task.key,)
    assert len(began) == 8 + STEPS - 7
    (left / "exits.safetensors").write_bytes(whole[:-1] + b"x")
    assert folder.verify(task)
    assert run_job(job, folder).done == (task.key,)
    assert len(began) == 8 + STEPS - 7 + STEPS
    assert files_of(folder.task_folder(task))[FILE] == whole


TRAINED = """
models = ["a"]
workloads = [{ name = "one", source = "txt:one.txt" }, { name = "two", source = "txt:two.txt" }]
machines = ["h100"]
policies = ["league"]
[[heads]]
name = "none"
[[heads]]
name = "lens"
fit = ["one"]
[[trainings]]
name = "none"
[[trainings]]
name = "own"
kind = "lens"
steps = 10
[[trainings]]
name = "both"
kind = "block"
text = ["one", "two"]
steps = 10
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_world(tmp_path_factory.mktemp("world"))


def test_rows_are_heads_and_trained_exits_not_their_product(world: Path) -> None:
    plan = plan_of(world, TRAINED)
    rows = [(cell.workload, cell.heads, cell.training) for cell in plan.cells if cell.kind == "score"]
    read = [("", ""), ("lens", ""), ("", "own"), ("", "both")]
    assert rows == [(workload, *names) for workload in ("one", "two") for names in read]
    trainings = tasks_of(plan, "training")
    assert sorted(len(task.recipe["workloads"]) for task in trainings) == [1, 1, 2]
    assert all(task.exclusive for task in trainings)
    raw = {plan.tasks[cell.task].needs["trace"] for cell in plan.cells if not cell.reader}
    for cell in plan.cells:
        needs = plan.tasks[cell.task].needs
        if cell.kind == "score":
            assert (needs.get("raw") in raw) == bool(cell.training)
        if cell.training:
            trace = plan.tasks[needs["trace"]]
            assert plan.tasks[trace.needs["heads"]].kind == "training"
    order = [task.kind for job in plan.jobs for task in job.tasks]
    assert order.index("trace") > max(place for place, kind in enumerate(order) if kind == "training")
    assert len({cell.name for cell in plan.cells if cell.kind == "score"}) == len(rows)


def test_a_card_does_not_change_when_the_untrained_row_is_added(world: Path) -> None:
    alone = TRAINED.replace('[[heads]]\nname = "lens"\nfit = ["one"]\n', "")
    without = alone.replace('[[trainings]]\nname = "none"\n', "")
    assert plan_of(world, without).tasks.keys() <= plan_of(world, alone).tasks.keys()


def test_excludes_name_trainings(world: Path) -> None:
    plan = plan_of(world, TRAINED + '[[exclude]]\ntraining = "own"\n[[exclude]]\ntraining = "none"\n')
    assert {cell.training for cell in plan.cells} == {"both"}


def test_a_training_takes_the_longer_the_more_steps_or_minutes_it_is_asked_for(world: Path) -> None:
    def seconds(asked: str) -> float:
        text = TRAINED.replace("steps = 10", asked)
        found = [task.estimate.seconds for task in tasks_of(plan_of(world, text), "training")]
        assert None not in found
        return min(one for one in found if one is not None)

    assert seconds("steps = 10") < seconds("steps = 10000") < seconds("steps = 20000")
    assert seconds("minutes = 3.0") == pytest.approx(seconds("minutes = 2.0") + 60.0)
    assert seconds("") > 60.0 * TRAINING_MINUTES


def test_exits_that_are_there_are_taken_with_what_they_took(
    done: Done, study_file: Path, tiny_model: Path, texts: Path, tmp_path: Path
) -> None:
    exits = tmp_path / "exits"
    offramp.train_exits(
        load_model(str(tiny_model)),
        f"jsonl:{texts}#text",
        at="1,2",
        kind="lens",
        steps=2,
        tokens=1500,
        kv_maps=False,
        output=exits,
        progress=False,
    )
    text = study_file.read_text().partition('[[trainings]]\nname = "block"')[0]
    given = tmp_path / "GIVEN.toml"
    given.write_text(f'{text}[[trainings]]\nname = "mine"\nfolder = "exits"\n')
    folder = StudyFolder(tmp_path / "given")
    plan = plan_into(given, folder)
    (task,) = tasks_of(plan, "heads")
    (job,) = [job for job in plan.jobs if task in job.tasks]
    assert run_job(job, folder).done == (task.key,)
    took = TRAINING_COST.read(folder.task_folder(task) / "training.json")
    assert (took.kind, took.exits, took.steps, took.rows) == ("lens", (1, 2), 2, None)
    assert {cell.training for cell in plan.cells} == {"", "mine"}
    given.write_text(given.read_text().replace("exits = [1, 2]", "exits = [1, 3]"))
    with pytest.raises(
        offramp.InputError, match="these exit heads have no exit 3, which is traced"
    ) as refused:
        make_plan(read_study(given))
    assert refused.value.fix == "write exits = [1, 2] in [study] (--exits 1,2)"
