"""Workers that are stopped: noticed, ended, and their tasks done all the same."""

from __future__ import annotations

import os
import platform
import re
import signal
import time
from pathlib import Path

import fake_works
import pytest
from fake_works import events_of, job_of, plan_of, task_of, value

from offramp.errors import OfframpError
from offramp.studies import locks
from offramp.studies.engines.engine import Backlog, EngineOptions
from offramp.studies.engines.local import Crew, LocalEngine, WorkerProcess
from offramp.studies.folder import StudyFolder
from offramp.studies.locks import BEAT_SECONDS, Watch, end_holder, holder, holding, is_held
from offramp.studies.status import status_of
from offramp.studies.task import Task

pytestmark = pytest.mark.usefixtures("made")

STALL = 3 * BEAT_SECONDS


def stopped_worker(folder: StudyFolder, task: Task) -> WorkerProcess:
    """A worker that holds a task's lock and is stopped, as by SIGSTOP."""
    worker = WorkerProcess(job_of(task), folder, fake_works.FAKE_WORKER)
    while not is_held(folder.lock_path(task)):
        time.sleep(0.01)
    os.kill(worker.process.pid, signal.SIGSTOP)
    return worker


def run(folder: StudyFolder, *tasks: Task) -> None:
    """Run tasks, each in a job of its own."""
    options = EngineOptions(stall_seconds=STALL)
    LocalEngine(fake_works.FAKE_WORKER).run([job_of(task) for task in tasks], folder, options, lambda: None)


class Clock:
    """A monotonic clock that a test moves, and the file whose signs of life are watched."""

    def __init__(self, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now, self.path = 1000.0, path
        monkeypatch.setattr(locks.time, "monotonic", lambda: self.now)
        path.touch()

    def silence(self, watch: Watch, seconds: float, *, beats: bool = False) -> float:
        """Look every half second for so long; what the last look says."""
        found = 0.0
        for _ in range(round(seconds / 0.5)):
            self.now += 0.5
            if beats:
                os.utime(self.path, ns=(0, int(self.now * 1e9)))
            found = watch.silence()
        return found


@pytest.fixture
def clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(tmp_path / "alive", monkeypatch)


def test_silence_is_counted_from_the_last_sign_of_life(clock: Clock) -> None:
    watch = Watch(clock.path)
    assert clock.silence(watch, 30, beats=True) == 0.0
    assert clock.silence(watch, 12) == 12.0
    assert clock.silence(watch, 0.5, beats=True) == 0.0


def test_a_clock_set_back_or_a_pause_of_the_watcher_is_nobodys_silence(clock: Clock) -> None:
    watch = Watch(clock.path)
    clock.silence(watch, 30, beats=True)
    os.utime(clock.path, ns=(0, 5))  # half a century ago
    assert clock.silence(watch, 3) <= 3.0
    clock.now += 3600  # Ctrl-Z, or a laptop asleep
    before = watch.silence()
    assert before <= 3.0 + 2 * BEAT_SECONDS
    assert clock.silence(watch, 8) == before + 8.0
    clock.now += 30.0  # who seldom looks notices too
    assert watch.silence() == before + 8.0 + 2 * BEAT_SECONDS


def test_two_workers_of_one_job_do_not_speak_for_each_other(folder: StudyFolder) -> None:
    job = job_of(task_of(1, seconds=2), task_of(2, seconds=2))
    workers = [WorkerProcess(job, folder, fake_works.FAKE_WORKER) for _ in range(2)]
    while len(list(folder.locks.glob("alive-*"))) < 2:
        assert any(worker.process.poll() is None for worker in workers)
        time.sleep(0.01)
    assert [worker.wait().killed for worker in workers] == [None, None]
    assert not list(folder.locks.glob("alive-*"))


def test_a_worker_that_never_reads_its_job_holds_nobody_up(folder: StudyFolder) -> None:
    long = task_of(1, deed="nothing", words="x" * (1 << 18))  # more than a pipe takes in
    program = ("-c", "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)")
    killed = WorkerProcess(job_of(long), folder, program, stall_seconds=0.5).wait().killed
    assert killed == "its process showed no sign of life for 0.5 s, and was ended"


def test_a_lock_names_its_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert holder(path) is None
    with holding(path) as held:
        assert held
        assert holder(path) == (os.getpid(), platform.node())
        with holding(path) as again:
            assert not again
    with holding(path, shared=True):
        pass
    assert holder(path) == (os.getpid(), platform.node())


def test_only_who_surely_holds_a_lock_here_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, ended = tmp_path / "lock", []
    monkeypatch.setattr("offramp.studies.locks.os.kill", lambda process, _: ended.append(process))
    path.write_bytes(b"\xff\xfe")
    assert end_holder(path) == "a process that left no name"
    path.write_text("123 elsewhere\n")
    assert end_holder(path) == "process 123 on elsewhere"
    path.write_text(f"{os.getpid()} {platform.node()}\n")  # which does not hold it
    assert "as far as is known" in str(end_holder(path))
    assert ended == []


def test_a_stopped_worker_is_ended_and_its_task_done_again(folder: StudyFolder, tmp_path: Path) -> None:
    task = task_of(7, deed="stop once", marks=tmp_path)
    run(folder, task)
    assert value(folder, task) == 7
    assert events_of(folder, task) == ["started", "killed", "started", "finished"]
    killed = [event for event in folder.journal.read().events if event.event == "killed"]
    assert f"no sign of life for {STALL:g} s" in str(killed[0])
    assert not list(folder.locks.glob("alive-*"))


@pytest.mark.skipif(not Path("/proc/locks").is_file(), reason="only Linux says who holds a lock")
def test_the_next_run_ends_a_stopped_worker_that_an_earlier_one_left(folder: StudyFolder) -> None:
    task, other = task_of(1, seconds=60), task_of(2)
    worker = stopped_worker(folder, task)
    try:
        if str(worker.process.pid) not in Path("/proc/locks").read_text():
            pytest.skip("this system does not list locks")
        silent = time.time() - 600
        os.utime(folder.lock_path(task), (silent, silent))
        (problem,) = status_of(plan_of([job_of(task), job_of(other)]), folder).problems
        assert f"held by process {worker.process.pid} on {platform.node()}" in problem
        assert re.search(r"no sign of life for \d+ min", problem)
        quick = task_of(1)  # the same task: what it does is not in its key
        assert quick.key == task.key
        run(folder, quick, other)
        assert (value(folder, quick), value(folder, other)) == (1, 2)
        assert worker.process.wait(timeout=10) == -signal.SIGKILL
    finally:
        worker.process.kill()


def test_a_stopped_worker_of_another_machine_is_named(folder: StudyFolder) -> None:
    task, other = task_of(1), task_of(2)
    with holding(folder.lock_path(task)):
        folder.lock_path(task).write_text("123 elsewhere\n")
        backlog = Backlog([job_of(task), job_of(other)], folder, retry=False, stall_seconds=1.0)
        # The engine's own workers may be slow to begin on a busy machine.
        with (
            Crew(folder, fake_works.FAKE_WORKER, EngineOptions(stall_seconds=300.0)) as crew,
            pytest.raises(OfframpError, match="held by process 123 on elsewhere") as caught,
        ):
            backlog.work_off(crew, lambda: None)
    assert caught.value.where == str(folder.lock_path(task))
    assert folder.is_done(other)
