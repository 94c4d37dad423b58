"""One job in one process: what is skipped, left, recorded and stopped."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import fake_works
import pytest
from fake_works import events_of, job_of, task_of, value
from folder_cases import Written

from offramp.errors import DamagedFileError
from offramp.kit.typed import from_json, to_json
from offramp.studies import runner
from offramp.studies.engines.local import WorkerProcess
from offramp.studies.folder import StudyFolder
from offramp.studies.locks import holding, is_held, machine_held
from offramp.studies.runner import MENDING, JobOutcome, failure_of, run_job
from offramp.studies.task import Task
from offramp.studies.work.work import ModelCache

pytestmark = pytest.mark.usefixtures("made")


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, fake_works.REGISTRY, raising=False)
    monkeypatch.setitem(sys.modules, fake_works.REGISTRY, sys)  # so that it is put back at the end
    fake_works.install()


def test_tasks_run_in_order_with_the_results_they_need(folder: StudyFolder) -> None:
    first, other = task_of(1, "trace"), task_of(10, "profile")
    both = task_of(100, needs={"trace": first, "profile": other})
    outcome = run_job(job_of(first, other, both), folder)
    assert outcome == JobOutcome(done=(first.key, other.key, both.key))
    assert value(folder, both) == 111
    assert from_json(JobOutcome, json.loads(json.dumps(to_json(outcome)))) == outcome


def test_a_done_task_is_not_run_again(folder: StudyFolder) -> None:
    task, later = task_of(1), task_of(2)
    run_job(job_of(task), folder)
    assert run_job(job_of(task, later), folder).done == (task.key, later.key)
    assert events_of(folder, task) == ["started", "finished"]


def test_a_task_waits_for_what_another_job_has_not_done_or_what_is_not_here(folder: StudyFolder) -> None:
    trace = task_of(1, "trace")
    score, other = task_of(2, needs={"trace": trace}), task_of(3)
    blocked = task_of(4, blocked="no such weights here")
    outcome = run_job(job_of(score, blocked, other), folder)
    assert (outcome.waiting, outcome.done) == ((score.key, blocked.key), (other.key,))
    assert not folder.task_folder(score).exists()
    run_job(job_of(trace), folder)
    (folder.task_folder(trace) / "result.json").write_text('{"value": 7}')  # it was damaged meanwhile
    assert run_job(job_of(score), folder).waiting == (score.key,)


def test_a_task_of_another_process_is_left_to_it(folder: StudyFolder) -> None:
    task, other = task_of(1), task_of(2)
    with holding(folder.lock_path(task)):
        assert is_held(folder.lock_path(task))
        outcome = run_job(job_of(task, other), folder)
    assert (outcome.busy, outcome.done) == ((task.key,), (other.key,))
    assert not is_held(folder.lock_path(task))
    assert run_job(job_of(task, other), folder).done == (task.key, other.key)


@pytest.mark.parametrize(
    ("deed", "what", "where"),
    [
        ("own error", "it is empty", "w.txt"),
        ("library error", "an odd shape", "fake_works.py, line "),
        ("allocate", "out of memory: ", ""),
        ("allocate with torch", "out of memory: [enforce fail", ""),
    ],
)
def test_an_error_fails_its_task_alone(folder: StudyFolder, deed: str, what: str, where: str) -> None:
    bad, good = task_of(1, "trace", deed=deed), task_of(2)
    needy = task_of(3, needs={"trace": bad})
    outcome = run_job(job_of(bad, good, needy), folder)
    assert (outcome.failed, outcome.done, outcome.waiting) == ((bad.key,), (good.key,), (needy.key,))
    failure = folder.failure(bad)
    assert failure is not None
    assert failure.what.startswith(what)
    assert failure.where.startswith(where)
    assert events_of(folder, bad) == ["started", "failed"]
    # It is not tried again before somebody says so.
    assert run_job(job_of(bad), folder).failed == (bad.key,)
    assert events_of(folder, bad) == ["started", "failed"]
    folder.forget_failure(bad)
    run_job(job_of(bad), folder)
    assert events_of(folder, bad) == ["started", "failed"] * 2


@pytest.mark.parametrize("deed", ["disk full", "disk full of a library"])
def test_a_full_disk_stops_the_job_and_fails_nothing(folder: StudyFolder, deed: str) -> None:
    task, later = task_of(1, deed=deed), task_of(2)
    outcome = run_job(job_of(task, later), folder)
    assert outcome.stopped is not None
    assert "the disk is full" in outcome.stopped.what
    assert from_json(JobOutcome, json.loads(json.dumps(to_json(outcome)))) == outcome
    assert [folder.condition(one) for one in (task, later)] == ["unfinished"] * 2


def test_an_unexpected_error_leaves_its_task_unfinished(folder: StudyFolder) -> None:
    task = task_of(1, deed="unexpected")
    with pytest.raises(KeyError, match="who knows"):
        run_job(job_of(task), folder)
    assert folder.condition(task) == "unfinished"
    assert not is_held(folder.lock_path(task))


@pytest.mark.parametrize("inside", [True, False])
def test_a_damaged_file_of_the_study_is_mended_in_another_way_than_one_from_elsewhere(
    folder: StudyFolder, tmp_path: Path, inside: bool
) -> None:
    place = folder.path if inside else tmp_path
    error = DamagedFileError("it is damaged", where=str(place / "x.parquet"), fix="copy it again")
    failure = failure_of(error, folder)
    assert (failure.what, failure.where) == ("it is damaged", str(place / "x.parquet"))
    assert failure.fix == (MENDING if inside else "copy it again")


def test_the_model_is_let_go_of_before_tasks_that_need_none(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[bool] = []

    def run(task: Task, _folder: StudyFolder, models: ModelCache) -> str:
        if "model" in task.recipe:
            models.get("key", object)  # type: ignore[arg-type]
        held.append(models._model is not None)
        return "done"

    monkeypatch.setattr(runner, "run_task", run)
    with_model = [Task("trace", {"model": number}) for number in range(2)]
    without = [Task("score", {"number": number}) for number in range(2)]
    run_job(job_of(with_model[0], without[0], with_model[1], without[1]), folder)
    assert held == [True, True, True, False]


# --- alone on the machine

HOLDER = """
import sys, time
from pathlib import Path
from offramp.studies.locks import machine_held
with machine_held(Path(sys.argv[1]), alone=sys.argv[2] == "alone"):
    print(time.monotonic(), flush=True)
    time.sleep(float(sys.argv[3]))
    print(time.monotonic(), flush=True)
"""


def test_who_must_be_alone_waits_for_others_and_goes_before_later_ones(tmp_path: Path) -> None:
    def start(how: str, seconds: float) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", HOLDER, str(tmp_path), how, str(seconds)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def spans(process: subprocess.Popen[str]) -> tuple[float, ...]:
        return tuple(float(line) for line in process.communicate(timeout=120)[0].split())

    with machine_held(tmp_path, alone=False), machine_held(tmp_path, alone=False):
        began = time.monotonic()
        alone = start("alone", 0.2)
        while not is_held(next(tmp_path.glob("turn-*"))):
            time.sleep(0.01)
        later = start("beside", 0.1)
        assert time.monotonic() - began < 60
        time.sleep(0.3)
        left = time.monotonic()
    (alone_from, alone_to), (later_from, _) = spans(alone), spans(later)
    assert left <= alone_from < alone_to <= later_from


# --- in a worker process


def test_a_worker_has_its_threads_a_log_and_a_clean_answer(folder: StudyFolder) -> None:
    task = task_of(1, deed="chatter")
    worker = WorkerProcess(job_of(task, threads=3), folder, fake_works.FAKE_WORKER)
    ending = worker.wait()
    assert ending.outcome == JobOutcome(done=(task.key,))
    assert folder.result(Written, task)["threads"] == ["3", "3", "3"]
    assert worker.log.read_text() == "a library's words\n"


def test_what_an_earlier_worker_said_is_not_taken_for_the_last_word_of_a_later_one(
    folder: StudyFolder,
) -> None:
    for deed, said in (("unexpected", "KeyError: 'who knows'"), ("exit", "")):
        ending = WorkerProcess(job_of(task_of(1, deed=deed)), folder, fake_works.FAKE_WORKER).wait()
        assert ending.last_line == said
