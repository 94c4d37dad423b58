"""Small tasks, plans and folders of made-up studies, without any model."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from offramp.studies.folder import StudyFolder
from offramp.studies.study import Study, StudyPlan
from offramp.studies.task import StudyCell, StudyJob, Task, TaskCost
from offramp.studies.work.work import Work, WorkContext


def task_of(kind: str, number: int = 0, *, seconds: float | None = None, **options: Any) -> Task:
    """A task that differs from others of its kind by a number."""
    return Task(kind, {"number": number}, estimate=TaskCost(seconds=seconds), **options)


STUDY = Study.model_validate(
    {"study": {"name": "made-up"}, "models": [f"m{number}" for number in range(9)], "workloads": ["prose"]}
)


def plan_of(tasks: Iterable[Task], **options: Any) -> StudyPlan:
    """A plan with a job for every task, and a cell for every one that is not shared by its kind."""
    by_key = {task.key: task for task in tasks}
    cells = tuple(
        StudyCell(task.kind, key, model=f"m{number}")
        for number, (key, task) in enumerate(by_key.items())
        if task.kind not in ("trace", "heads", "profile")
    )
    jobs = tuple(
        StudyJob(task.kind, (task,), tuple(task.needs.values()), exclusive=task.exclusive)
        for task in by_key.values()
    )
    return StudyPlan(STUDY, cells, jobs, **options)


class Written(Work[Any]):
    """Any kind of work, whose result is read as it was written."""

    def run(self, context: WorkContext) -> Any:
        raise AssertionError("its results alone are read")

    @classmethod
    def read(cls, value: Any) -> Any:
        return value


def do(folder: StudyFolder, task: Task, *, seconds: float = 1.0) -> Path:
    """Do a task: a result, and files in a folder below as a trace has them."""
    own = folder.start(task)
    (own / "result.json").write_text('{"number": 7}')
    (own / "trace").mkdir(exist_ok=True)
    (own / "trace" / "part-0.bin").write_bytes(bytes(range(40)))
    (own / "trace" / "manifest.json").write_text('{"parts": 1}')
    folder.finish(task, seconds)
    return own
