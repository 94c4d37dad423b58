"""What is left to do of a study's jobs, as the files of its folder say: whoever did it, it is done."""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from offramp.errors import DiskFullError, OfframpError
from offramp.kit.defaults import STALL_SECONDS
from offramp.kit.numbers import shown_size
from offramp.studies.engines.engine import POLL_SECONDS
from offramp.studies.engines.process import Ending
from offramp.studies.folder import StudyFolder
from offramp.studies.locks import ALIVE, BEAT_SECONDS, Watch, end_holder, holding, is_held
from offramp.studies.manifest import Failure
from offramp.studies.task import Job, Task

TRIES = 2
"""Times that a task may end its process before it counts as failed."""


@dataclass(frozen=True)
class MemoryLimit:
    """The memory that a job can have at most. said: whose limit it is, before the figure.

    where: for the error; None: the job's name. fix: what gives it more.
    """

    memory_bytes: int
    said: str
    where: str | None = None
    fix: str = "use a machine with more memory"


class Workers(Protocol):
    """What an engine runs jobs with."""

    @property
    def running(self) -> Collection[str]:
        """Keys of the jobs that were started and have not ended."""

    def start(self, job: Job) -> None:
        """Start a job."""

    def wait(self, seconds: float) -> Sequence[tuple[Job, Ending]]:
        """Wait until a job ends, or for so many seconds; the jobs that have ended, and how."""


class Backlog:
    """The jobs of a study and what is left of each, for an engine to work off.

    A task is settled when nothing more will be done about it: it is done, it failed, it is blocked, or it
    needs one that ended so, or that no job does and is not done. retry: let tasks that failed in earlier runs
    be tried again. stall_seconds: without a sign of life after which another run's worker that holds a task
    is ended.
    """

    def __init__(
        self,
        jobs: Sequence[Job],
        folder: StudyFolder,
        *,
        retry: bool,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        self.folder = folder
        self._stall_seconds = stall_seconds
        self._watched: dict[Path, Watch] = {}
        self._looked = 0.0
        self._jobs = list(jobs)
        self._tasks = {task.key: task for job in jobs for task in job.tasks}
        self._open = dict(self._tasks)
        elsewhere = {need for task in self._tasks.values() for need in task.needs.values()} - set(self._tasks)
        self._done = {key for key in elsewhere if folder.folder_of_done(key) is not None}
        self._lost = elsewhere - self._done
        self._endings: collections.Counter[str] = collections.Counter()
        if retry:
            self._forget_failures()
        self.refresh()

    def _forget_failures(self) -> None:
        for task in self._tasks.values():
            if self.folder.failure(task) is not None:
                self.folder.forget_failure(task)

    def work_off(
        self, workers: Workers, may_start: Callable[[Job], bool], on_change: Callable[[], None]
    ) -> None:
        """Start what is ready and may start, and wait, until every task is settled and no job runs."""
        while workers.running or not self.finished():
            for job in self.ready(workers.running):
                if may_start(job):
                    workers.start(job)
            on_change()
            for job, ending in workers.wait(POLL_SECONDS):
                self.ended(job, ending)
            self.refresh()
            self._end_stalled(workers.running)
        on_change()

    def _end_stalled(self, running: Collection[str]) -> None:
        """End workers of other runs that hold tasks and show no sign of life.

        Raises OfframpError if nothing else is left to do and one cannot be ended from here.
        """
        if time.monotonic() - self._looked < BEAT_SECONDS:
            return
        self._looked = time.monotonic()
        # Whatever is held in the folder, by tasks that the study names no more and for timings too.
        own = {task.key for job in self._jobs if job.key in running for task in job.tasks}
        left_alone = {
            self.folder.lock_path(task).name
            for key, task in self._tasks.items()
            if key in own or key not in self._open
        }
        paths = [
            path
            for path in (self.folder.locks.iterdir() if self.folder.locks.is_dir() else ())
            if path.name not in left_alone and not path.name.startswith(ALIVE)
        ]
        self._watched = {path: self._watched.get(path) or Watch(path) for path in paths if is_held(path)}
        for path, watch in self._watched.items():
            if watch.silence() <= self._stall_seconds:
                continue
            who = end_holder(path)
            if who is not None and not running:
                raise OfframpError(
                    f"a lock is held by {who}, which has shown no sign of life for {self._stall_seconds:g} s",
                    where=str(path),
                    fix="end that process, then run the study again",
                )

    def finished(self) -> bool:
        """Whether every task is settled."""
        return not self._open

    def refresh(self) -> None:
        """See what is settled by now, by this or other processes."""
        changed = True
        while changed:
            changed = False
            for task in list(self._open.values()):
                if self._settle(task):
                    del self._open[task.key]
                    changed = True

    def _settle(self, task: Task) -> bool:
        condition = self.folder.condition(task)
        needs_lost = any(need in self._lost for need in task.needs.values())
        if condition == "done":
            self._done.add(task.key)
        elif condition == "failed" or task.blocked is not None or needs_lost:
            self._lost.add(task.key)
        else:
            return False
        return True

    def ready(self, running: Collection[str]) -> list[Job]:
        """Jobs of which every need is settled, and of which something can be done now.

        running: keys of the jobs that this engine runs, which are left out. If there are none, and no job is
        ready as a whole, those of which a part can be done.
        """
        idle = [job for job in self._jobs if job.key not in running and self.runnable(job)]
        whole = [job for job in idle if not any(need in self._open for need in job.needs)]
        return whole if whole or running else idle

    def runnable(self, job: Job) -> list[Task]:
        """The job's open tasks, in order, that nobody works on and that need what is or will be there."""
        return self._possible(job, lambda task: not is_held(self.folder.lock_path(task)))

    def _possible(self, job: Job, wanted: Callable[[Task], bool]) -> list[Task]:
        found: dict[str, Task] = {}
        for task in job.tasks:
            there = all(need in self._done or need in found for need in task.needs.values())
            if task.key in self._open and there and wanted(task):
                found[task.key] = task
        return list(found.values())

    def ended(self, job: Job, ending: Ending) -> None:
        """Take in how a job's worker ended: one that died is charged to the task that it was at.

        Raises DiskFullError if the disk is full.
        """
        outcome = ending.outcome
        if outcome is not None and outcome.stopped is not None:
            stopped = outcome.stopped
            raise DiskFullError(stopped.what, where=stopped.where, fix=stopped.fix)
        self.refresh()
        # A lock may outlive its killed process by a moment, so it says nothing here.
        left = self._possible(job, lambda task: True)
        if not left or (outcome is not None and outcome.busy):
            return
        task, why = left[0], reason(ending)
        self._endings[task.key] += 1
        self.folder.journal.append("killed" if ending.killed else "ended early", task, why=why)
        if ending.crashed or self._endings[task.key] >= TRIES:
            fix = f"{'read its log, then ' if outcome is None else ''}run again with --retry"
            self.fail(task, Failure(why, ending.log, fix, OfframpError.__name__))

    def fail_unfit(self, limit_of: Callable[[Job], MemoryLimit]) -> None:
        """Record as failed what needs more memory than there will ever be. limit_of: a job."""
        for job in self._jobs:
            limit = limit_of(job)
            for task in job.tasks if job.memory_bytes > limit.memory_bytes else ():
                needed = (
                    job.memory_bytes if task.estimate.memory_bytes is None else task.estimate.memory_bytes
                )
                if task.key in self._open and needed > limit.memory_bytes:
                    room = f"{limit.said} {shown_size(limit.memory_bytes)}"
                    what = f"it needs about {shown_size(needed)} of memory; {room}"
                    fix = f"{limit.fix}, then run again with --retry"
                    where = job.name if limit.where is None else limit.where
                    self.fail(task, Failure(what, where, fix, OfframpError.__name__))

    def fail(self, task: Task, failure: Failure) -> None:
        """Record that a task failed, unless another process has taken it up or done it meanwhile."""
        with holding(self.folder.lock_path(task)) as held:
            if held and not self.folder.is_done(task):
                self.folder.fail(task, failure)
        self.refresh()


def reason(ending: Ending) -> str:
    """Why a worker ended and left a task that could be done, in a sentence."""
    if ending.outcome is not None:
        return "what it needs was damaged or removed while the study ran; the next run makes that again"
    if ending.killed is not None:
        return ending.killed
    if ending.last_line:
        return f"its process ended early; the last line of its log: {ending.last_line}"
    return "its process ended before it had done it, and said nothing"
