"""A plan as a file of the study's folder: a task stands there once, a job names its tasks by key."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from offramp.studies.manifest import study_file
from offramp.studies.task import Cell, Job, Plan, Task


@dataclass(frozen=True)
class PlannedJob:
    """A job whose tasks are named by their keys; else as `Job`."""

    name: str
    tasks: tuple[str, ...]
    needs: tuple[str, ...]
    threads: int
    exclusive: bool
    memory_bytes: int


@dataclass(frozen=True)
class PlanRecord:
    """A plan as it is kept; fields as in `Plan`."""

    study: Mapping[str, Any]
    cells: tuple[Cell, ...]
    tasks: tuple[Task, ...]
    jobs: tuple[PlannedJob, ...]
    unavailable: Mapping[str, str]
    damaged: tuple[str, ...]

    @classmethod
    def of(cls, plan: Plan) -> PlanRecord:
        """The record of a plan."""
        jobs = tuple(
            PlannedJob(**{**_fields(job), "tasks": tuple(task.key for task in job.tasks)})
            for job in plan.jobs
        )
        return cls(**{**_fields(plan), "tasks": tuple(plan.tasks.values()), "jobs": jobs})

    @property
    def plan(self) -> Plan:
        """The plan that it is the record of."""
        tasks = {task.key: task for task in self.tasks}
        jobs = tuple(
            Job(**{**_fields(job), "tasks": tuple(tasks[key] for key in job.tasks)}) for job in self.jobs
        )
        return Plan(**{**_fields(self), "tasks": tasks, "jobs": jobs})


FILE = study_file(PlanRecord, version=2)


def _fields(record: Any) -> dict[str, Any]:
    return {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
