"""An engine: it runs a study's jobs until nothing more can be done, as the files of its folder say."""

from __future__ import annotations

import collections
import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

from offramp.defaults import STALL_SECONDS
from offramp.errors import DiskFullError, OfframpError
from offramp.kit.numbers import shown_size
from offramp.studies.folder import StudyFolder
from offramp.studies.locks import ALIVE, BEAT_SECONDS, Watch, end_holder, holding, is_held
from offramp.studies.runner import JobOutcome
from offramp.studies.task import Failure, StudyJob, Task

POLL_SECONDS = 0.5
"""How often an engine looks for what other processes did in the study's folder."""
TRIES = 2
"""Times that a task may end its process before it counts as failed."""
WORKER = ("-m", "offramp.studies.runner")
"""What Python is to run as a worker, less the study's folder and the worker's name."""


@dataclass(frozen=True)
class EngineOptions:
    """How an engine may use the machine or cluster."""

    workers: int | None = None
    """Most jobs at a time; None: as many as the cores at hand allow."""
    memory_bytes: int | None = None
    """Of this machine that jobs may use together; None: what there is. The nodes of a Ray cluster have what
    they were started with."""
    retry: bool = False
    """Whether failed tasks are tried again, once."""
    address: str | None = None
    """Of a running Ray cluster; None: the one of this machine, or one started for this run."""
    stall_seconds: float = STALL_SECONDS
    """Without a sign of life before a process that works on a task is ended."""


@dataclass(frozen=True)
class MemoryLimit:
    """The memory that a job can have at most."""

    memory_bytes: int
    said: str
    """Whose limit it is, before the figure."""
    where: str | None = None
    """For the error; None: the job's name."""
    fix: str = "use a machine with more memory"
    """What gives it more."""


@dataclass(frozen=True)
class Ending:
    """How a worker ended."""

    outcome: JobOutcome | None
    """None if it ended without one."""
    killed: str | None = None
    """By what, as a sentence, if it was."""
    last_line: str = ""
    """That it printed, if it ended by itself without an outcome."""
    log: str = ""
    """The path of what it printed."""

    @property
    def crashed(self) -> bool:
        """Whether the worker ended by itself without an outcome, and so would again."""
        return self.outcome is None and self.killed is None

    @property
    def reason(self) -> str:
        """Why it left a task that could be done, in a sentence."""
        if self.outcome is not None:
            return "what it needs was damaged or removed while the study ran; the next run makes that again"
        if self.killed is not None:
            return self.killed
        if self.last_line:
            return f"its process ended early; the last line of its log: {self.last_line}"
        return "its process ended before it had done it, and said nothing"


class Workers(Protocol):
    """What an engine runs jobs with."""

    @property
    def running(self) -> Collection[str]:
        """Keys of the jobs that were started and have not ended."""

    def limit(self, job: StudyJob) -> MemoryLimit:
        """The memory that a job can have at most."""

    def may_start(self, job: StudyJob) -> bool:
        """Whether a job may start beside those that run."""

    def start(self, job: StudyJob) -> None:
        """Start a job."""

    def wait(self, seconds: float) -> Sequence[tuple[StudyJob, Ending]]:
        """Wait until a job ends, or for so many seconds; the jobs that have ended, and how."""


@dataclass(frozen=True)
class StudyEngine(ABC):
    """Runs jobs."""

    name: ClassVar[str]
    """As given to `--engine`."""
    program: Sequence[str] = WORKER
    """That Python runs as a worker."""

    @abstractmethod
    def workers(
        self, folder: StudyFolder, options: EngineOptions
    ) -> contextlib.AbstractContextManager[Workers]:
        """What the jobs are run with, inside the block; those that still run at its end are ended.

        Raises InputError where there is nothing to run them with.
        """

    def run(
        self,
        jobs: Sequence[StudyJob],
        folder: StudyFolder,
        options: EngineOptions,
        on_change: Callable[[], None],
    ) -> None:
        """Run the jobs until every task is done, has failed, or waits for one that has.

        on_change: called whenever something may have changed, and at least once a second.

        Raises what `workers` raises, OfframpError if the study cannot go on (DiskFullError: the disk is
        full); whatever was begun is resumed by a later run.
        """
        backlog = Backlog(jobs, folder, retry=options.retry, stall_seconds=options.stall_seconds)
        if backlog.finished():  # a cluster takes seconds to start
            on_change()
            return
        with self.workers(folder, options) as workers:
            backlog.work_off(workers, on_change)


class Backlog:
    """The jobs of a study and what is left of each, for an engine to work off.

    A task is settled when nothing more will be done about it: it is done, it failed, it is blocked, or it
    needs one that ended so, or that no job does and is not done. retry: let tasks that failed in earlier runs
    be tried again. stall_seconds: without a sign of life after which another run's worker that holds a task
    is ended.
    """

    def __init__(
        self,
        jobs: Sequence[StudyJob],
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
        for task in self._tasks.values() if retry else ():
            if self.folder.failure(task) is not None:
                self.folder.forget_failure(task)
        self.refresh()

    def work_off(self, workers: Workers, on_change: Callable[[], None]) -> None:
        """Start what is ready and may start, and wait, until every task is settled and no job runs.

        What needs more memory than there will ever be has failed before that.
        """
        self._fail_unfit(workers.limit)
        while workers.running or not self.finished():
            # 1. Start what is ready, as far as there is room.
            for job in self.ready(workers.running):
                if workers.may_start(job):
                    workers.start(job)
            on_change()
            # 2. Take in how workers ended, or wait a moment.
            for job, ending in workers.wait(POLL_SECONDS):
                self.ended(job, ending)
            # 3. See what other processes did meanwhile, and end those of them that hang.
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
                condition = self.folder.condition(task)
                needs_lost = not self._lost.isdisjoint(task.needs.values())
                if condition == "done":
                    self._done.add(task.key)
                elif condition == "failed" or task.blocked is not None or needs_lost:
                    self._lost.add(task.key)
                else:
                    continue
                del self._open[task.key]
                changed = True

    def ready(self, running: Collection[str]) -> list[StudyJob]:
        """Jobs of which every need is settled, and of which something can be done now.

        running: keys of the jobs that this engine runs, which are left out. If there are none, and no job is
        ready as a whole, those of which a part can be done.
        """
        idle = [job for job in self._jobs if job.key not in running and self._possible(job, alone=True)]
        whole = [job for job in idle if not any(need in self._open for need in job.needs)]
        return whole if whole or running else idle

    def _possible(self, job: StudyJob, *, alone: bool) -> list[Task]:
        """The job's open tasks, in order, that need what is or will be there. alone: and nobody works on."""
        possible: dict[str, Task] = {}
        for task in job.tasks:
            there = all(need in self._done or need in possible for need in task.needs.values())
            if task.key in self._open and there and not (alone and is_held(self.folder.lock_path(task))):
                possible[task.key] = task
        return list(possible.values())

    def ended(self, job: StudyJob, ending: Ending) -> None:
        """Take in how a job's worker ended: one that died is charged to the task that it was at.

        Raises DiskFullError if the disk is full.
        """
        outcome = ending.outcome
        if outcome is not None and outcome.stopped is not None:
            stopped = outcome.stopped
            raise DiskFullError(stopped.what, where=stopped.where, fix=stopped.fix)
        self.refresh()
        # A lock may outlive its killed process by a moment, so it says nothing here.
        left = self._possible(job, alone=False)
        if not left or (outcome is not None and outcome.busy):
            return
        task, why = left[0], ending.reason
        self._endings[task.key] += 1
        self.folder.journal.append("killed" if ending.killed else "ended early", task, why=why)
        if ending.crashed or self._endings[task.key] >= TRIES:
            fix = f"{'read its log, then ' if outcome is None else ''}run again with --retry"
            self.fail(task, Failure(why, ending.log, fix, OfframpError.__name__))

    def _fail_unfit(self, limit_of: Callable[[StudyJob], MemoryLimit]) -> None:
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
