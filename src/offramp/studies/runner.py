"""Running one job: its tasks in order, each once, whichever process comes first.

The process that does it is `python -m offramp.studies.runner FOLDER NAME`. The job comes as one line of JSON
on standard input, which stays open for as long as the engine lives: when it closes, the process ends at once,
so that nothing is computed for an engine that is gone. The outcome goes to standard output as JSON; whatever
libraries print goes to standard error, which is the job's log.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from offramp.errors import DamagedFileError, DiskFullError, OfframpError, is_out_of_memory
from offramp.files import disk_full, is_disk_full, parse_json
from offramp.kit.typed import from_json, to_json
from offramp.studies.folder import StudyFolder
from offramp.studies.locks import holding, machine_held, start_beating
from offramp.studies.task import Failure, StudyJob, Task
from offramp.studies.work.work import ModelCache, WorkContext

Fate = Literal["done", "failed", "busy", "waiting"]
"""What became of a task in a job: waiting means for one that it needs; busy, that another process has it."""

TASK_ERRORS = (OfframpError, MemoryError, OSError, RuntimeError, ValueError)
"""What an unlucky task may raise, offramp's own and its libraries' errors. Anything else ends the process."""

MENDING = (
    "run offramp study status --verify, which finds what is damaged, and then offramp study run --retry, "
    "which makes that again, and this"
)
"""What to do about a task that met a damaged file of another one."""


@dataclass(frozen=True)
class JobOutcome:
    """What became of a job's tasks, by key."""

    done: tuple[str, ...] = ()
    failed: tuple[str, ...] = ()
    busy: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    stopped: Failure | None = None
    """Why the job, and the study, cannot go on, if so."""


def run_job(job: StudyJob, folder: StudyFolder) -> JobOutcome:
    """Run what is left of a job in this process; a failed task is recorded, and left alone.

    Nothing heavy is imported before the locks are held. A full disk ends the job, as its outcome says.

    Raises what no task is expected to raise (see `TASK_ERRORS`); its task is then left unfinished.
    """
    fates: dict[Fate, list[str]] = {"done": [], "failed": [], "busy": [], "waiting": []}
    models = ModelCache()
    stopped = None
    try:
        with machine_held(folder.locks, alone=job.exclusive):
            for place, task in enumerate(job.tasks):
                if not any("model" in later.recipe for later in job.tasks[place:]):
                    models.clear()  # what only reads its trace needs the memory more
                fates[run_task(task, folder, models)].append(task.key)
    except (DiskFullError, OSError) as error:
        if not is_full(error):
            raise
        stopped = Failure.of(error if isinstance(error, DiskFullError) else disk_full(folder.journal.path, 0))
    return JobOutcome(**{fate: tuple(keys) for fate, keys in fates.items()}, stopped=stopped)


def run_task(task: Task, folder: StudyFolder, models: ModelCache, *, watched: bool = False) -> Fate:
    """Run a task unless it is done, has failed, needs what is not there, or is another process's.

    models: that earlier tasks of the job left loaded. watched: whether somebody watches this process; what
    made the task fail is then raised as well.

    Raises DiskFullError or OSError if the disk is full, and what no task is expected to raise.
    """
    if folder.is_done(task):
        return "done"
    with holding(folder.lock_path(task)) as held:
        if not held:
            return "busy"
        # The process that held the lock before may have done the task meanwhile.
        if folder.is_done(task):
            return "done"
        if folder.failure(task) is not None:
            return "failed"
        inputs = {key: folder.folder_of_done(key) for key in task.needs.values()}
        present = {key: path for key, path in inputs.items() if path is not None}
        if task.blocked is not None or len(present) < len(inputs):
            return "waiting"
        return _try(task, folder, present, models, watched)


def _try(
    task: Task, folder: StudyFolder, inputs: Mapping[str, Path], models: ModelCache, watched: bool
) -> Fate:
    """Do a task's work, holding its lock, and record how it ended."""
    started = time.monotonic()
    place = folder.start(task)
    try:
        context = WorkContext(place, inputs, models, folder.executions, task.recipe, progress=watched)
        _work(task, context)
        folder.finish(task, time.monotonic() - started)
    except TASK_ERRORS as error:
        if is_full(error):
            raise
        if is_out_of_memory(error):
            # What is loaded is in the way of the tasks that follow.
            models.clear()
        folder.fail(task, failure_of(error, folder), time.monotonic() - started)
        if watched:
            raise
        return "failed"
    return "done"


def _work(task: Task, context: WorkContext) -> None:
    from offramp.studies.work.work import perform

    perform(task, context)


def is_full(error: BaseException) -> bool:
    """Whether an error says that the disk is full."""
    return isinstance(error, DiskFullError) or is_disk_full(error)


def failure_of(error: BaseException, folder: StudyFolder) -> Failure:
    """The record of a task's error: of one that is not offramp's own with the place in the code.

    folder: of the study, whose own damaged files are mended in another way than those from elsewhere.
    """
    failure = Failure.of(error)
    if is_out_of_memory(error):
        fix = "use a machine with more memory, fewer --workers or a streamed model; then --retry"
        return dataclasses.replace(failure, what=f"out of memory: {failure.what}", fix=fix)
    if isinstance(error, DamagedFileError) and Path(error.where).is_relative_to(folder.path):
        return dataclasses.replace(failure, fix=MENDING)
    if isinstance(error, OfframpError):
        return failure
    last = traceback.extract_tb(error.__traceback__)[-1]
    return dataclasses.replace(failure, where=f"{_shown(last.filename)}, line {last.lineno}, in {last.name}")


@functools.cache
def _shown(filename: str) -> str:
    """A source file's path below the packages, so that no record names a person's folders."""
    parts = Path(filename).parts
    places = [index for index, part in enumerate(parts) if part in ("site-packages", "src")]
    return "/".join(parts[places[-1] + 1 :]) if places else Path(filename).name


ORPHANED = 3
"""The exit code of a worker whose engine is gone."""


def main() -> None:
    """Run the job that standard input holds, in the study's folder that the command line names.

    The second argument is the worker's name: what it touches while it lives has it.
    """
    answer = os.dup(sys.stdout.fileno())
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    # Ctrl-C reaches every process of a terminal; the engine decides when its workers end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    job = from_json(StudyJob, parse_json(_read_line()))
    threading.Thread(target=_end_with_engine, daemon=True).start()
    folder = StudyFolder(Path(sys.argv[1]))
    start_beating(folder.alive_path(sys.argv[2]))
    outcome = run_job(job, folder)
    with os.fdopen(answer, "w") as file:
        json.dump(to_json(outcome), file)


def _read_line() -> bytes:
    """The first line of standard input; unbuffered, since a thread goes on reading."""
    line = bytearray()
    while not line.endswith(b"\n"):
        part = os.read(0, 1 << 16)
        if not part:
            os._exit(ORPHANED)
        line += part
    return bytes(line)


def _end_with_engine() -> None:
    """End the process when standard input closes, whatever else runs in it."""
    while os.read(0, 1):
        pass
    os._exit(ORPHANED)


if __name__ == "__main__":
    main()
