"""The engine that runs jobs in processes of this machine, as many as its cores and its memory allow."""

from __future__ import annotations

import concurrent.futures
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

from offramp.models.process import available_memory, machine_memory
from offramp.studies.engines.backlog import Backlog, MemoryLimit
from offramp.studies.engines.engine import EngineOptions
from offramp.studies.engines.process import WORKER, Ending, WorkerProcess
from offramp.studies.folder import StudyFolder
from offramp.studies.task import Job


@dataclass(frozen=True)
class LocalEngine:
    """Processes on this machine. program: that Python runs as a worker."""

    program: Sequence[str] = WORKER
    name: str = "local"

    def run(
        self,
        jobs: Sequence[Job],
        folder: StudyFolder,
        options: EngineOptions,
        on_change: Callable[[], None],
    ) -> None:
        """Run the jobs until every task is done, has failed, or waits for one that has (see `Engine`)."""
        backlog = Backlog(jobs, folder, retry=options.retry, stall_seconds=options.stall_seconds)
        room = Room.of_machine(options)
        backlog.fail_unfit(lambda job: room.limit)
        with Crew(folder, self.program, options.stall_seconds) as crew:
            backlog.work_off(crew, lambda job: room.fits(job, crew.workers), on_change)


@dataclass(frozen=True)
class Room:
    """What jobs may use of a machine. workers: most jobs at a time; None: as `cores` allow."""

    cores: int
    limit: MemoryLimit
    workers: int | None = None

    @classmethod
    def of_machine(cls, options: EngineOptions) -> Room:
        """The cores and the memory of this machine, within the options."""
        limit = MemoryLimit(machine_memory(), "this machine has")
        allowed = options.memory_bytes
        if allowed is not None and allowed < limit.memory_bytes:
            limit = MemoryLimit(allowed, "--memory allows", "--memory", "allow more memory")
        return cls(len(os.sched_getaffinity(0)), limit, options.workers)

    def fits(self, job: Job, running: Sequence[WorkerProcess]) -> bool:
        """Whether a job may start beside those that run. One of any number of threads may run alone."""
        if not running:
            return True
        if job.exclusive or any(worker.job.exclusive for worker in running):
            return False
        return self._has_threads(job, running) and self._has_memory(job, running)

    def _has_threads(self, job: Job, running: Sequence[WorkerProcess]) -> bool:
        if self.workers is not None:
            return len(running) < self.workers
        return sum(worker.job.threads for worker in running) + job.threads <= self.cores

    def _has_memory(self, job: Job, running: Sequence[WorkerProcess]) -> bool:
        """Whether memory will do when every running job takes all that it is expected to."""
        expected = sum(worker.job.memory_bytes for worker in running)
        to_come = sum(max(0, worker.job.memory_bytes - worker.memory_bytes()) for worker in running)
        return (
            expected + job.memory_bytes <= self.limit.memory_bytes
            and to_come + job.memory_bytes <= available_memory()
        )


class Crew:
    """The workers that run now. At the end of the block those that still do are killed."""

    def __init__(self, folder: StudyFolder, program: Sequence[str], stall_seconds: float) -> None:
        self._folder = folder
        self._program = program
        self._stall_seconds = stall_seconds
        self._waiting: dict[concurrent.futures.Future[Ending], WorkerProcess] = {}
        self._threads = concurrent.futures.ThreadPoolExecutor(max_workers=1024)

    @property
    def workers(self) -> list[WorkerProcess]:
        """Those that run."""
        return list(self._waiting.values())

    @property
    def running(self) -> set[str]:
        """Keys of the jobs that run."""
        return {worker.job.key for worker in self.workers}

    def start(self, job: Job) -> None:
        """Start a worker on a job."""
        worker = WorkerProcess(job, self._folder, self._program, self._stall_seconds)
        self._waiting[self._threads.submit(worker.wait)] = worker

    def wait(self, seconds: float) -> list[tuple[Job, Ending]]:
        """Wait until a worker ends, or for so many seconds; the jobs whose workers have ended, and how."""
        if not self._waiting:
            time.sleep(seconds)
        ended = concurrent.futures.wait(
            self._waiting, timeout=seconds, return_when=concurrent.futures.FIRST_COMPLETED
        ).done
        return [(self._waiting.pop(future).job, future.result()) for future in ended]

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for worker in self.workers:
            worker.kill()
        self._threads.shutdown()
