"""Where a study stands: states, reasons, counts, the time left, and what else a person should know."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from folder_cases import do, plan_of, task_of

from offramp.files import sha256_of_file
from offramp.studies.folder import StudyFolder
from offramp.studies.journal import line_of
from offramp.studies.locks import holding
from offramp.studies.status import STATES, TimeLeft, status_of
from offramp.studies.study import StudyFile, StudyPlan
from offramp.studies.task import Failure, StudyJob, Task


def counts(**numbers: int) -> dict[str, int]:
    return {state: numbers.get(state, 0) for state in STATES}


def chain() -> tuple[Task, Task, Task, Task]:
    """A trace, the league of it, what decodes that league, and a score of the trace."""
    trace = task_of("trace")
    league = task_of("league", needs={"trace": trace.key})
    decode = task_of("decode", needs={"trace": trace.key, "league": league.key}, exclusive=True)
    return trace, league, decode, task_of("score", needs={"trace": trace.key})


def test_a_study_not_begun_waits_and_makes_no_folder(folder: StudyFolder) -> None:
    status = status_of(plan_of(chain()), folder)
    assert set(status.states.values()) == {"waiting"}
    assert status.cells == counts(waiting=3)
    assert status.reasons == {}
    assert status.left == TimeLeft(0.0, 4)
    assert status.problems == ()
    assert not folder.path.exists()


def test_every_state_is_told_apart(folder: StudyFolder) -> None:
    trace, league, decode, score = chain()
    other = task_of("trace", 1, blocked="model 'x' is not here")
    blocked = task_of("score", 1, needs={"trace": other.key})
    damaged, failed = task_of("replay"), task_of("tune")
    do(folder, trace)
    (do(folder, damaged) / "result.json").write_text("{}")
    folder.fail(failed, Failure("no member meets the floor"))
    plan = plan_of([trace, league, decode, score, other, blocked, damaged, failed])
    with holding(folder.lock_path(league)):
        status = status_of(plan, folder)
    states = ("done", "running", "waiting", "waiting", "blocked", "blocked", "damaged", "failed")
    assert tuple(status.states.values()) == states
    assert tuple(status.states) == tuple(plan.tasks)
    assert status.cells == counts(running=1, waiting=2, blocked=1, damaged=1, failed=1)
    assert status.failures == {failed.key: Failure("no member meets the floor")}
    assert status.reasons == {
        other.key: "model 'x' is not here",
        blocked.key: "it needs a trace task that cannot be run here: model 'x' is not here",
        damaged.key: "a file of it changed since it was done; the next run does it again",
    }


def test_what_needs_a_failed_task_waits_with_the_reason_through_others(folder: StudyFolder) -> None:
    trace, league, decode, score = chain()
    folder.fail(trace, Failure("out of memory"))
    do(folder, score)
    status = status_of(plan_of([trace, league, decode, score]), folder)
    assert list(status.states.values()) == ["failed", "waiting", "waiting", "done"]
    reason = f"it needs the trace task {trace.key[:12]}, which failed"
    assert status.reasons == {league.key: reason, decode.key: reason}
    # Nothing of it will be run as things are.
    assert status.left == TimeLeft(0.0, 0)


def test_a_finished_study_is_complete_and_finished_tasks_of_no_plan_are_counted(folder: StudyFolder) -> None:
    tasks = chain()
    for task in (*tasks, task_of("score", 1), task_of("trace", 1)):
        do(folder, task)
    status = status_of(plan_of(tasks), folder)
    assert set(status.states.values()) == {"done"}
    assert status.left == TimeLeft(0.0, 0)
    assert status.problems == (
        "2 finished tasks in the folder that the study does not name (any more): kept, and not shown",
    )


def test_a_study_file_edited_since_is_told(folder: StudyFolder, tmp_path: Path) -> None:
    path = tmp_path / "STUDY.toml"
    path.write_text("[study]")
    plan = plan_of([task_of("score")], file=StudyFile(str(path), sha256_of_file(path)))
    assert status_of(plan, folder).problems == ()
    path.write_text("[study] # edited")
    (problem,) = status_of(plan, folder).problems
    assert "STUDY.toml changed since this was planned" in problem
    path.unlink()
    (problem,) = status_of(plan, folder).problems
    assert "STUDY.toml is gone" in problem


# --- the time left


def left(tasks: list[Task], folder: StudyFolder, *, workers: int = 1) -> TimeLeft:
    return status_of(plan_of(tasks), folder, workers=workers).left


def test_estimates_are_summed_where_nothing_is_done(folder: StudyFolder) -> None:
    tasks = [task_of("score", number, seconds=10.0 + number) for number in range(3)]
    assert left(tasks, folder) == TimeLeft(33.0, 0)
    assert left([*tasks, task_of("replay")], folder) == TimeLeft(33.0, 1)


def test_jobs_run_beside_one_another_but_timings_alone_and_no_job_in_two(folder: StudyFolder) -> None:
    short = [task_of("score", number, seconds=10.0) for number in range(4)]
    timed = task_of("decode", seconds=7.0, exclusive=True)
    assert left([*short, timed], folder, workers=2) == TimeLeft(20.0 + 7.0, 0)
    long = task_of("trace", seconds=50.0)
    assert left([*short, long, timed], folder, workers=2) == TimeLeft(50.0 + 7.0, 0)
    together = StudyJob("one model", tuple(short))
    plan = plan_of(short)
    assert status_of(StudyPlan(plan.study, plan.cells, (together,)), folder, workers=4).left == TimeLeft(
        40.0, 0
    )


def test_what_finished_tasks_took_corrects_estimates_and_stands_in_for_them(folder: StudyFolder) -> None:
    scores = [task_of("score", number, seconds=10.0 * (number + 1)) for number in range(4)]
    replays = [task_of("replay", number) for number in range(5)]
    for task, seconds in zip(scores[:3], (5.0, 10.0, 165.0), strict=True):
        do(folder, task, seconds=seconds)
    for task, seconds in zip(replays[:3], (1.0, 3.0, 8.0), strict=True):
        do(folder, task, seconds=seconds)
    # They took 180 s in the place of 60, the long one most of it: so will the last, of 40 s; a replay 4 s.
    assert left([*scores, *replays], folder) == TimeLeft(3 * 40.0 + 2 * 4.0, 0)


def test_a_task_of_which_nobody_knows_what_it_took_says_nothing_of_others(folder: StudyFolder) -> None:
    tasks = [task_of("score", number, seconds=10.0) for number in range(3)]
    do(folder, tasks[0], seconds=20.0)
    do(folder, tasks[1])
    journal = folder.path / "journal.jsonl"
    *events, last = folder.journal.read().events
    journal.write_bytes(b"".join(map(line_of, (*events, replace(last, details={})))))
    assert left(tasks, folder) == TimeLeft(20.0, 0)


def test_what_a_running_task_has_run_for_is_taken_off(
    folder: StudyFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    task = task_of("score", seconds=100.0)
    now = time.monotonic()
    folder.start(task)
    monkeypatch.setattr(time, "monotonic", lambda: now + 30.0)
    # It was killed, and will begin again.
    assert left([task], folder) == TimeLeft(100.0, 0)
    with holding(folder.lock_path(task)):
        assert left([task], folder).seconds == pytest.approx(70.0, abs=1.0)
        monkeypatch.setattr(time, "monotonic", lambda: now + 1000.0)
        assert left([task], folder) == TimeLeft(0.0, 0)
