"""The local engine: what runs beside what, and what it makes of jobs that fail, die or do not fit."""

from __future__ import annotations

import dataclasses
import itertools
import os
import shutil
import signal
import statistics
import time
from pathlib import Path
from typing import Any

import fake_engine
import psutil
import pytest
from fake_works import FAKE_WORKER, events_of, files_under, job_of, plan_of, task_of, value

from offramp.errors import DiskFullError
from offramp.studies.engines import local
from offramp.studies.engines.engine import Backlog, EngineOptions, MemoryLimit
from offramp.studies.engines.local import Ending, LocalEngine
from offramp.studies.folder import StudyFolder
from offramp.studies.locks import holding, is_held
from offramp.studies.runner import JobOutcome
from offramp.studies.task import Failure, StudyJob, Task


def run(folder: StudyFolder, *jobs: StudyJob, **options: Any) -> list[float]:
    """Run jobs to their end; the moments at which the engine said that something may have changed."""
    moments: list[float] = []
    engine = LocalEngine(FAKE_WORKER)
    engine.run(jobs, folder, EngineOptions(**options), lambda: moments.append(time.monotonic()))
    return moments


def failure_of(folder: StudyFolder, task: Task) -> Failure:
    failure = folder.failure(task)
    assert failure is not None
    return failure


def span(folder: StudyFolder, *tasks: Task) -> tuple[float, float]:
    """When the first of the tasks was started and the last one was finished."""
    keys = {task.key for task in tasks}
    times = [event.monotonic for event in folder.journal.read().events if event.task in keys]
    return min(times), max(times)


def overlap(folder: StudyFolder, first: Task, second: Task) -> bool:
    (start, end), (other_start, other_end) = span(folder, first), span(folder, second)
    return start < other_end and other_start < end


def diamond(**options: Any) -> list[StudyJob]:
    """A trace, two tasks that need it, and one that needs both, each in a job of its own."""
    trace = task_of(1, "trace", **options)
    left, right = (task_of(number, needs={"trace": trace}) for number in (10, 20))
    end = task_of(100, "replay", needs={"first": left, "second": right})
    return [job_of(task) for task in (trace, left, right, end)]


def test_jobs_run_once_what_they_need_is_done(folder: StudyFolder, tmp_path: Path) -> None:
    jobs = diamond()
    moments = run(folder, *jobs, workers=2)
    trace, left, right, end = (job.tasks[0] for job in jobs)
    assert value(folder, end) == 132
    assert span(folder, trace)[1] <= min(span(folder, left)[0], span(folder, right)[0])
    assert max(span(folder, left)[1], span(folder, right)[1]) <= span(folder, end)[0]
    assert all(events_of(folder, job.tasks[0]) == ["started", "finished"] for job in jobs)
    # At least once a second, but where a busy machine keeps the engine from it.
    assert statistics.median(later - earlier for earlier, later in itertools.pairwise(moments)) < 1
    # A finished study starts no process: every worker would leave a log, an empty one too.
    journal = folder.journal.path.read_bytes()
    assert len(list(folder.logs.iterdir())) == len(jobs)
    shutil.rmtree(folder.logs)
    run(folder, *jobs, workers=2)
    assert (folder.journal.path.read_bytes(), folder.logs.exists()) == (journal, False)
    # The order of jobs and their number change no byte.
    other = StudyFolder(tmp_path / "other")
    run(other, *reversed(jobs), workers=1)
    assert files_under(folder.path) == files_under(other.path)


def test_what_no_job_does_must_be_there(folder: StudyFolder) -> None:
    trace, _, _, end = diamond()
    there, absent = task_of(10, needs={"a": trace.tasks[0]}), task_of(20, needs={"a": end.tasks[0]})
    run(folder, trace)
    run(folder, job_of(there), job_of(absent))
    assert [folder.condition(task) for task in (there, absent)] == ["done", "unfinished"]


def test_jobs_that_need_tasks_of_one_another_are_done_in_parts(folder: StudyFolder) -> None:
    first, second = task_of(1), task_of(2)
    after_first, after_second = task_of(10, needs={"a": first}), task_of(20, needs={"a": second})
    run(folder, job_of(first, after_second), job_of(second, after_first))
    assert [value(folder, task) for task in (after_first, after_second)] == [11, 22]


def test_a_failed_task_holds_up_only_what_needs_it_until_a_retry(folder: StudyFolder, tmp_path: Path) -> None:
    bad, good = task_of(1, "trace", deed="own error"), task_of(2, "trace")
    needy, fine = task_of(3, needs={"trace": bad}), task_of(4, needs={"trace": good})
    blocked = task_of(5, blocked="no such machine")
    jobs = [job_of(bad), job_of(good), job_of(needy), job_of(fine), job_of(blocked)]
    run(folder, *jobs, workers=2)
    conditions = {task.recipe["number"]: folder.condition(task) for job in jobs for task in job.tasks}
    assert conditions == {1: "failed", 2: "done", 3: "unfinished", 4: "done", 5: "unfinished"}
    run(folder, *jobs)
    assert events_of(folder, bad) == ["started", "failed"]
    mended = task_of(1, "trace")
    assert mended.key == bad.key
    run(folder, job_of(mended), *jobs[1:], retry=True)
    assert value(folder, needy) == 4
    assert events_of(folder, good) == ["started", "finished"]


def test_a_killed_task_is_tried_once_more(folder: StudyFolder, tmp_path: Path) -> None:
    task, before = task_of(1, deed="die once", marks=tmp_path), task_of(2, "trace")
    after = task_of(3)
    run(folder, job_of(before, task, after))
    assert events_of(folder, task) == ["started", "killed", "started", "finished"]
    assert events_of(folder, before) == events_of(folder, after) == ["started", "finished"]


def test_a_task_that_is_killed_twice_fails_alone(folder: StudyFolder) -> None:
    task, after = task_of(1, deed="die"), task_of(2)
    run(folder, job_of(task, after))
    failure = failure_of(folder, task)
    assert failure.what.startswith("its process was killed by signal 9 (SIGKILL)")
    assert "memory" in failure.what
    assert Path(failure.where).parent == folder.logs
    assert events_of(folder, task) == ["started", "killed", "started", "killed", "failed"]
    assert value(folder, after) == 2


@pytest.mark.parametrize(
    ("deed", "said"), [("unexpected", "KeyError: 'who knows'"), ("exit well", "said nothing")]
)
def test_a_task_that_ends_its_process_fails_alone(folder: StudyFolder, deed: str, said: str) -> None:
    task, after = task_of(1, deed=deed), task_of(2)
    run(folder, job_of(task, after))
    failure = failure_of(folder, task)
    assert said in failure.what
    assert failure.where == str(folder.logs / f"{job_of(task, after).key[:16]}.log")
    assert events_of(folder, task) == ["started", "ended early", "failed"]
    assert value(folder, after) == 2


def test_a_full_disk_stops_the_study_which_a_later_run_goes_on_with(folder: StudyFolder) -> None:
    first, long = task_of(1), task_of(3, seconds=60)
    full, mended = (task_of(2, deed=deed, needs={"first": first}) for deed in ("disk full", "nothing"))
    with pytest.raises(DiskFullError, match="the disk is full"):
        run(folder, job_of(first), job_of(full), job_of(long), workers=2)
    assert not is_held(folder.lock_path(long))
    conditions = [folder.condition(task) for task in (first, full, long)]
    assert conditions == ["done", "unfinished", "unfinished"]
    run(folder, job_of(first), job_of(mended), job_of(task_of(3)), workers=2)
    assert events_of(folder, first) == ["started", "finished"]
    assert value(folder, full) == 3


# --- what runs beside what


def test_jobs_that_fit_run_side_by_side_and_others_wait(folder: StudyFolder, tmp_path: Path) -> None:
    gigabyte = 10**9
    large, small = (
        task_of(number, deed="meet", marks=tmp_path, memory_bytes=gigabyte // number) for number in (1, 3)
    )
    other = task_of(2, memory_bytes=gigabyte)
    run(folder, job_of(large), job_of(other), job_of(small), workers=3, memory_bytes=int(gigabyte * 1.5))
    assert all(map(folder.is_done, (large, small)))
    assert not overlap(folder, large, other)


def test_what_can_never_fit_fails_alone_and_says_so(folder: StudyFolder) -> None:
    huge, small = task_of(1, "trace", memory_bytes=10**15), task_of(2, memory_bytes=1000)
    needy = task_of(3, needs={"trace": huge})
    run(folder, job_of(huge, small, needy))
    failure = failure_of(folder, huge)
    assert failure.what.startswith("it needs about 1,000.0 TB of memory; this machine has ")
    assert failure.where == "job"
    assert folder.is_done(small)
    assert folder.condition(needy) == "unfinished"
    assert events_of(folder, huge) == ["failed"]


def test_the_memory_there_is_is_that_of_this_machines_control_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local, "machine_memory", lambda: 4000)
    for allowed, limit in ((None, 4000), (9000, 4000), (300, 300)):
        room = local.MachineRoom.of_machine(EngineOptions(memory_bytes=allowed))
        assert room.limit.memory_bytes == limit
        assert (room.limit.where == "--memory") is (limit == 300)


def test_an_input_that_is_damaged_meanwhile_is_told_and_mended_by_a_retry(folder: StudyFolder) -> None:
    trace = task_of(1, "trace")
    needy = task_of(10, needs={"trace": trace})
    run(folder, job_of(trace))
    backlog = Backlog([job_of(trace), job_of(needy)], folder, retry=False)
    (folder.task_folder(trace) / "result.json").write_text("{}")
    for _ in range(2):
        outcome = JobOutcome(waiting=(needy.key,))
        backlog.ended(job_of(needy), Ending(outcome))
    failure = failure_of(folder, needy)
    assert "was damaged or removed while the study ran" in failure.what
    assert failure.fix == "run again with --retry"
    run(folder, job_of(trace), job_of(needy), retry=True)
    assert value(folder, needy) == 11


def test_timings_run_alone(folder: StudyFolder) -> None:
    alone = task_of(1, "profile", exclusive=True, seconds=0.3)
    others = [task_of(number, seconds=0.3) for number in (2, 3, 4)]
    run(folder, job_of(others[0]), job_of(alone), *map(job_of, others[1:]), workers=2)
    assert folder.is_done(alone)
    assert not any(overlap(folder, alone, other) for other in others)


def room_of(cores: int, memory: int = 10**12) -> local.MachineRoom:
    return local.MachineRoom(cores, MemoryLimit(memory, "this machine has"))


class Running:
    """A worker as a room sees it."""

    def __init__(self, job: StudyJob, used: int = 0) -> None:
        self.job = job
        self.memory_bytes = lambda: used


@pytest.mark.parametrize(
    ("threads", "running", "workers", "fits"),
    [
        (4, [], None, True),
        (1, [1], None, True),
        (2, [1], None, False),
        (1, [1, 1], None, False),
        (1, [1], 1, False),
        (9, [1], 2, True),
    ],
)
def test_threads_share_the_cores_unless_workers_are_counted(
    threads: int, running: list[int], workers: int | None, fits: bool
) -> None:
    others: list[Any] = [Running(job_of(task_of(9), threads=number)) for number in running]
    room = dataclasses.replace(room_of(cores=2), workers=workers)
    assert room.fits(job_of(task_of(1), threads=threads), others) is fits


def test_a_timing_starts_beside_nothing_and_nothing_beside_it() -> None:
    alone, other = job_of(task_of(1, "profile", exclusive=True)), job_of(task_of(2))
    beside: list[Any] = [Running(other), Running(alone)]
    room = room_of(cores=9)
    assert [room.fits(alone, running) for running in ([], beside[:1])] == [True, False]
    assert [room.fits(other, running) for running in (beside[:1], beside[1:])] == [True, False]


@pytest.mark.parametrize(("used", "fits"), [(0, False), (400, True)])
def test_what_running_jobs_will_still_take_is_kept_free(
    monkeypatch: pytest.MonkeyPatch, used: int, fits: bool
) -> None:
    monkeypatch.setattr(local, "available_memory", lambda: 700)
    worker: Any = Running(job_of(task_of(9, memory_bytes=500)), used)
    assert room_of(cores=9).fits(job_of(task_of(1, memory_bytes=300)), [worker]) is fits


def test_what_another_process_works_on_is_waited_for(folder: StudyFolder) -> None:
    jobs = diamond()
    trace, left = jobs[0].tasks[0], jobs[1].tasks[0]
    run(folder, jobs[0])
    changes = []

    def on_change() -> None:
        changes.append(time.monotonic())
        if len(changes) == 3:
            held.__exit__(None, None, None)

    held = holding(folder.lock_path(left))
    assert held.__enter__()
    LocalEngine(FAKE_WORKER).run(jobs, folder, EngineOptions(), on_change)
    assert value(folder, jobs[3].tasks[0]) == 132
    assert span(folder, left)[0] >= changes[2]
    assert events_of(folder, trace) == ["started", "finished"]


# --- the engine itself is stopped


def workers_of(process: int) -> list[psutil.Process]:
    return psutil.Process(process).children(recursive=True)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_no_worker_outlives_a_stopped_engine_and_all_is_resumed(
    folder: StudyFolder, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    long = [task_of(number, seconds=60) for number in (1, 2)]
    jobs = [job_of(task_of(9), long[0]), job_of(long[1])]
    folder.write_plan(plan_of(jobs))
    engine = fake_engine.start(folder)
    began = time.monotonic()
    while not all(is_held(folder.lock_path(task)) for task in long):
        assert time.monotonic() - began < 60
        time.sleep(0.02)
    workers = workers_of(engine.pid)
    assert len(workers) == 2
    os.kill(engine.pid, number)
    assert engine.wait(timeout=60) == code
    _, alive = psutil.wait_procs(workers, timeout=60)
    assert alive == []
    run(folder, job_of(task_of(9), task_of(1)), job_of(task_of(2)))
    assert [value(folder, task) for task in long] == [1, 2]
    assert events_of(folder, task_of(9)) == ["started", "finished"]
