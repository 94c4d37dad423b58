"""The engine of processes of this machine; each runs one job, so that what happens to it stays with it."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from offramp.defaults import STALL_SECONDS
from offramp.files import parse_json, require_alone
from offramp.kit.typed import from_json, to_json
from offramp.models.process import available_memory, machine_memory
from offramp.studies.engines.engine import WORKER, Ending, EngineOptions, MemoryLimit, StudyEngine
from offramp.studies.folder import StudyFolder
from offramp.studies.locks import Watch
from offramp.studies.runner import JobOutcome
from offramp.studies.task import StudyJob

SHOWN_BYTES = 1 << 14
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What tells torch's and numpy's libraries how many threads to use; the latter two go before the first."""


class WorkerProcess:
    """A running worker, a Python of its own. It ends when the process that made this object does.

    One that is forked from a process with torch in it would start 2.7 s sooner, for a job of minutes; and
    threads and devices would be as the parent found them.

    stall_seconds: without a sign of life after which it is killed: a stopped one holds its locks for ever.
    """

    def __init__(
        self,
        job: StudyJob,
        folder: StudyFolder,
        program: Sequence[str] = WORKER,
        stall_seconds: float = STALL_SECONDS,
    ) -> None:
        folder.logs.mkdir(parents=True, exist_ok=True)
        self.job = job
        name = f"{job.key[:16]}-{uuid.uuid4().hex[:8]}"
        self._alive = folder.alive_path(name)
        self._stall_seconds = stall_seconds
        self._stalled = False
        self.log = folder.logs / f"{job.key[:16]}.log"
        require_alone(self.log)
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, *program, str(folder.path), name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(job),
            )
        # One that is stopped before it reads its job would hold up whoever hands it over.
        threading.Thread(target=self._watch, daemon=True).start()
        assert self.process.stdin is not None
        try:
            # The pipe stays open: its closing tells the worker that the engine is gone.
            self.process.stdin.write(json.dumps(to_json(job)).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # It is dead already; `wait` says how.

    def _watch(self) -> None:
        """Kill the worker if it shows no sign of life for too long."""
        watch = Watch(self._alive)
        while self.process.poll() is None:
            if watch.silence() > self._stall_seconds:
                self._stalled = True
                self.process.kill()
            time.sleep(min(1.0, self._stall_seconds / 4))

    def wait(self) -> Ending:
        """How the worker ended, once it has."""
        assert self.process.stdout is not None
        answer = self.process.stdout.read()
        code = self.process.wait()
        # A library that ends the process may end it with 0, and without an answer.
        outcome = from_json(JobOutcome, parse_json(answer)) if code == 0 and answer else None
        said = "" if outcome else last_line(self.log, self._log_start)
        self._alive.unlink(missing_ok=True)
        killed = _killed(code)
        if killed is not None and self._stalled:
            killed = f"its process showed no sign of life for {self._stall_seconds:g} s, and was ended"
        return Ending(outcome, killed, said, str(self.log))

    def memory_bytes(self) -> int:
        """Memory that it holds now."""
        try:
            return int(psutil.Process(self.process.pid).memory_info().rss)
        except psutil.NoSuchProcess:
            return 0

    def kill(self) -> None:
        """End it at once; what its task left is gone on with later."""
        self.process.kill()


def environment(job: StudyJob) -> dict[str, str]:
    """The environment of a worker: as many threads as the job's key says, which do not spin while waiting."""
    threads = dict.fromkeys(THREADS, str(job.threads))
    return {**os.environ, **threads, "OMP_WAIT_POLICY": "passive"}


def last_line(log: Path, start: int) -> str:
    """The last line of a log from `start` bytes on that is not empty, "" if there is none."""
    with log.open("rb") as file:
        file.seek(max(start, log.stat().st_size - SHOWN_BYTES))
        lines = file.read().decode("utf-8", errors="replace").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "")


def _killed(code: int) -> str | None:
    if code >= 0:
        return None
    name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
    often = "; the system kills with it when memory runs out" if -code == signal.SIGKILL else ""
    return f"its process was killed by signal {-code} ({name}){often}"


@dataclass(frozen=True)
class MachineRoom:
    """What jobs may use of a machine."""

    cores: int
    limit: MemoryLimit
    workers: int | None = None
    """Most jobs at a time; None: as `cores` allow."""

    @classmethod
    def of_machine(cls, options: EngineOptions) -> MachineRoom:
        """The cores and the memory of this machine, within the options."""
        limit = MemoryLimit(machine_memory(), "this machine has")
        allowed = options.memory_bytes
        if allowed is not None and allowed < limit.memory_bytes:
            limit = MemoryLimit(allowed, "--memory allows", "--memory", "allow more memory")
        return cls(len(os.sched_getaffinity(0)), limit, options.workers)

    def fits(self, job: StudyJob, running: Sequence[WorkerProcess]) -> bool:
        """Whether a job may start beside those that run. One of any number of threads may run alone."""
        if not running:
            return True
        if job.exclusive or any(worker.job.exclusive for worker in running):
            return False
        threads = sum(worker.job.threads for worker in running) + job.threads
        has_threads = threads <= self.cores if self.workers is None else len(running) < self.workers
        return has_threads and self._has_memory(job, running)

    def _has_memory(self, job: StudyJob, running: Sequence[WorkerProcess]) -> bool:
        """Whether memory will do when every running job takes all that it is expected to."""
        expected = sum(worker.job.memory_bytes for worker in running)
        to_come = sum(max(0, worker.job.memory_bytes - worker.memory_bytes()) for worker in running)
        return (
            expected + job.memory_bytes <= self.limit.memory_bytes
            and to_come + job.memory_bytes <= available_memory()
        )


class Crew:
    """The workers that run now. At the end of the block those that still do are killed."""

    def __init__(self, folder: StudyFolder, program: Sequence[str], options: EngineOptions) -> None:
        self._folder = folder
        self._program = program
        self._stall_seconds = options.stall_seconds
        self._room = MachineRoom.of_machine(options)
        self._waiting: dict[concurrent.futures.Future[Ending], WorkerProcess] = {}
        self._threads = concurrent.futures.ThreadPoolExecutor(max_workers=1024)

    @property
    def running(self) -> set[str]:
        """Keys of the jobs that run."""
        return {worker.job.key for worker in self._waiting.values()}

    def limit(self, job: StudyJob) -> MemoryLimit:
        """The memory that a job can have at most."""
        return self._room.limit

    def may_start(self, job: StudyJob) -> bool:
        """Whether there is room for a job beside those that run."""
        return self._room.fits(job, list(self._waiting.values()))

    def start(self, job: StudyJob) -> None:
        """Start a worker on a job."""
        worker = WorkerProcess(job, self._folder, self._program, self._stall_seconds)
        self._waiting[self._threads.submit(worker.wait)] = worker

    def wait(self, seconds: float) -> list[tuple[StudyJob, Ending]]:
        """Wait until a worker ends, or for so many seconds; the jobs whose workers have ended, and how."""
        if not self._waiting:
            time.sleep(seconds)
        ended = concurrent.futures.wait(
            self._waiting, timeout=seconds, return_when=concurrent.futures.FIRST_COMPLETED
        ).done
        return [(self._waiting.pop(future).job, future.result()) for future in ended]

    def __enter__(self) -> Crew:
        return self

    def __exit__(self, *unused: object) -> None:
        for worker in self._waiting.values():
            worker.kill()
        self._threads.shutdown()


class LocalEngine(StudyEngine):
    """Processes on this machine."""

    name = "local"

    def workers(self, folder: StudyFolder, options: EngineOptions) -> Crew:
        """As many as its cores and its memory allow."""
        return Crew(folder, self.program, options)
