"""Kinds of work without models, for tests of runners and engines: what a task does, its recipe says.

Run as a script, this is a worker that knows these kinds: give `FAKE_WORKER` to an engine.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from folder_cases import STUDY, Written

from offramp.errors import WorkloadError
from offramp.files import disk_full
from offramp.studies.engines.local import THREADS
from offramp.studies.folder import StudyFolder
from offramp.studies.study import StudyPlan
from offramp.studies.task import StudyJob, Task, TaskCost
from offramp.studies.work.work import WorkContext

FAKE_WORKER = (str(Path(__file__).resolve()),)
REGISTRY = "offramp.studies.work.work"


def perform(task: Task, context: WorkContext) -> None:
    """Sum a task's number and those of the tasks it needs, after the deed that `sources` names, if any."""
    DEEDS[task.sources.get("deed", "nothing")](task, context)
    time.sleep(float(task.sources.get("seconds", 0)))
    needed = [
        json.loads((context.folder_of(task.needs[role]) / "result.json").read_text())
        for role in sorted(task.needs)
    ]
    value = task.recipe["number"] + sum(result["value"] for result in needed)
    context.write_result({"value": value, "threads": [os.environ.get(name) for name in THREADS]})


def once(task: Task) -> bool:
    """Whether this is the first call for the task, in any process, told by a file in the folder `marks`."""
    try:
        (Path(task.sources["marks"]) / task.key).touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _raise(error: BaseException) -> None:
    raise error


def _mark(task: Task, name: str, text: str) -> None:
    path = Path(task.sources["marks"]) / name
    path.with_suffix(".part").write_text(text)
    path.with_suffix(".part").replace(path)


def _meet(task: Task, _context: WorkContext) -> None:
    """Wait for another task that does the same at the same time."""
    marks = Path(task.sources["marks"])
    (marks / f"{task.key}.here").touch()
    began = time.monotonic()
    while len(list(marks.glob("*.here"))) < 2:
        if time.monotonic() > began + 60:
            raise TimeoutError("nobody came")
        time.sleep(0.02)


def _allocate(_task: Task, _context: WorkContext) -> None:
    """Ask for more memory than any machine has."""
    import numpy as np

    np.ones(1 << 60, dtype=np.uint8)


def _allocate_with_torch(_task: Task, _context: WorkContext) -> None:
    import torch

    torch.ones(1 << 60, dtype=torch.uint8)


DEEDS: Mapping[str, Callable[[Task, WorkContext], Any]] = {
    "nothing": lambda task, context: None,
    "die": lambda task, context: kill(),
    "stop once": lambda task, context: os.kill(os.getpid(), signal.SIGSTOP) if once(task) else None,
    "die once": lambda task, context: kill() if once(task) else None,
    "meet": _meet,
    "allocate": _allocate,
    "allocate with torch": _allocate_with_torch,
    "own error": lambda task, context: _raise(WorkloadError("it is empty", where="w.txt", fix="fill it")),
    "library error": lambda task, context: _raise(ValueError("an odd shape")),
    "unexpected": lambda task, context: _raise(KeyError("who knows")),
    "exit": lambda task, context: sys.exit(5),
    "exit well": lambda task, context: sys.exit(0),
    "disk full": lambda task, context: _raise(disk_full(context.folder / "x", 100)),
    "disk full of a library": lambda task, context: _raise(OSError(28, "No space left on device")),
    "say who": lambda task, context: _mark(task, "who", f"{os.getppid()} {os.environ['RAY_RAYLET_PID']}"),
    "chatter": lambda task, context: print("a library's words"),
}


def task_of(
    number: int, kind: str = "score", *, needs: Mapping[str, Task] | None = None, **options: Any
) -> Task:
    """A task of a number; needs: by role. deed, seconds, marks: see `perform`; memory_bytes: estimated."""
    fields = {name: options.pop(name) for name in ("exclusive", "blocked") if name in options}
    memory = options.pop("memory_bytes", None)
    return Task(
        kind,
        {"number": number},
        {role: task.key for role, task in (needs or {}).items()},
        sources={name: str(value) for name, value in options.items()},
        estimate=TaskCost(memory_bytes=memory),
        **fields,
    )


def job_of(*tasks: Task, name: str = "job", **options: Any) -> StudyJob:
    """A job of tasks, which needs what its tasks do and are not."""
    own = {task.key for task in tasks}
    needs = dict.fromkeys(key for task in tasks for key in task.needs.values() if key not in own)
    options.setdefault("memory_bytes", max(task.estimate.memory_bytes or 0 for task in tasks))
    return StudyJob(name, tasks, tuple(needs), exclusive=any(task.exclusive for task in tasks), **options)


def plan_of(jobs: list[StudyJob]) -> StudyPlan:
    """The plan of jobs, without cells."""
    return StudyPlan(STUDY, (), tuple(jobs))


def value(folder: StudyFolder, task: Task) -> int:
    """What a task's result says."""
    return int(folder.result(Written, task)["value"])


def events_of(folder: StudyFolder, task: Task) -> list[str]:
    """What happened to a task."""
    return [event.event for event in folder.journal.read().events if event.task == task.key]


def files_under(folder: Path) -> dict[str, bytes]:
    """Every file of the finished tasks: its bytes by path."""
    tasks = folder / "tasks"
    return {str(path.relative_to(tasks)): path.read_bytes() for path in tasks.rglob("*") if path.is_file()}


def install() -> None:
    """Put this work in the place of the real ones, whose libraries take seconds to import."""
    module = types.ModuleType(REGISTRY)
    module.perform = perform  # type: ignore[attr-defined]
    sys.modules[REGISTRY] = module


if __name__ == "__main__":
    install()
    from offramp.studies.runner import main

    main()
