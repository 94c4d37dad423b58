"""Small tasks, plans and folders of made-up studies, without any model."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from offramp.studies.folder import StudyFolder
from offramp.studies.task import Cell, Job, Plan, Task, TaskCost


def task_of(kind: str, number: int = 0, *, seconds: float | None = None, **options: Any) -> Task:
    """A task that differs from others of its kind by a number."""
    return Task(kind, {"number": number}, estimate=TaskCost(seconds=seconds), **options)


SETTINGS = {
    "name": "made-up", "title": "", "description": "", "floors": [0.9], "tokens": 9, "dtype": "float32",
    "threads": 1, "seed": 0, "draws": 9,
}  # fmt: skip
STUDY: Mapping[str, Any] = {
    "study": SETTINGS, "models": [], "workloads": [], "transforms": [], "machines": []
}  # fmt: skip


def plan_of(tasks: Iterable[Task], *, study: Mapping[str, Any] | None = None) -> Plan:
    """A plan with a job for every task, and a cell for every one that is not shared by its kind."""
    by_key = {task.key: task for task in tasks}
    cells = tuple(
        Cell(task.kind, key, model=f"m{number}")
        for number, (key, task) in enumerate(by_key.items())
        if task.kind not in ("trace", "heads", "profile")
    )
    jobs = tuple(
        Job(task.kind, (task,), tuple(task.needs.values()), exclusive=task.exclusive)
        for task in by_key.values()
    )
    return Plan({**STUDY, **(study or {})}, cells, jobs)


def do(folder: StudyFolder, task: Task, *, seconds: float = 1.0) -> Path:
    """Do a task: a result, and files in a folder below as a trace has them."""
    own = folder.start(task)
    (own / "result.json").write_text('{"number": 7}')
    (own / "trace").mkdir(exist_ok=True)
    (own / "trace" / "part-0.bin").write_bytes(bytes(range(40)))
    (own / "trace" / "manifest.json").write_text('{"parts": 1}')
    folder.finish(task, seconds)
    return own
