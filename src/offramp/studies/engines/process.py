"""A worker process: it runs one job, apart from the engine, so that what happens to it stays with it."""

from __future__ import annotations

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

from offramp.files import parse_json
from offramp.kit.defaults import STALL_SECONDS
from offramp.kit.typed import from_json, to_json
from offramp.studies.folder import StudyFolder
from offramp.studies.locks import Watch
from offramp.studies.runner import JobOutcome
from offramp.studies.task import Job

WORKER = ("-m", "offramp.studies.worker")
"""What Python is to run as a worker, less the study's folder and the worker's name."""

SHOWN_BYTES = 1 << 14
THREADS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
"""What tells torch's and numpy's libraries how many threads to use; the latter two go before the first."""


@dataclass(frozen=True)
class Ending:
    """How a worker ended.

    outcome: None if it ended without one. killed: by what, as a sentence, if it was. last_line: that it
    printed, if it ended by itself without an outcome. log: the path of what it printed.
    """

    outcome: JobOutcome | None
    killed: str | None = None
    last_line: str = ""
    log: str = ""

    @property
    def crashed(self) -> bool:
        """Whether the worker ended by itself without an outcome, and so would again."""
        return self.outcome is None and self.killed is None


class WorkerProcess:
    """A running worker. It ends when the process that made this object does.

    stall_seconds: without a sign of life after which it is killed: a stopped one holds its locks for ever.
    """

    def __init__(
        self,
        job: Job,
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
        with self.log.open("ab") as log:
            self._log_start = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, *program, str(folder.path), name],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env=environment(job),
            )
        assert self.process.stdin is not None
        try:
            # The pipe stays open: its closing tells the worker that the engine is gone.
            self.process.stdin.write(json.dumps(to_json(job)).encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # It is dead already; `wait` says how.
        threading.Thread(target=self._watch, daemon=True).start()

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


def environment(job: Job) -> dict[str, str]:
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
