"""Tasks, the cells that show their results, and the jobs that run them: plain data, ready for JSON."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from offramp.files import canonical_json, sha256_of_text

SCHEMA_VERSION = 1
"""Of a task's recipe: raise it where the same recipe would give another result."""

AXES = {
    "model": "models",
    "transform": "transforms",
    "workload": "workloads",
    "heads": "heads",
    "training": "trainings",
    "policy": "policies",
    "machine": "machines",
}
"""Tables of a study's file by what a cell calls the entry that it has of each."""


@dataclass(frozen=True)
class TaskCost:
    """What a task will take, roughly. None: unknown.

    seconds: on this machine. memory_bytes: at its peak. disk_bytes: that stay.
    """

    seconds: float | None = None
    memory_bytes: int | None = None
    disk_bytes: int | None = None


@dataclass(frozen=True)
class Task:
    """One piece of work with one result, which every cell that needs it shares.

    kind: a name of `offramp.studies.work.work.WORKS`. recipe: everything that changes the result (JSON):
    fingerprints, sizes, seed, threads, code and library versions; and nothing that does not, such as the
    names that the study gives. needs: keys of tasks whose results it reads, by role ("trace", "heads",
    "profile", "league"). exclusive: whether it takes timings, and so runs alone.
    sources: where its input lies on this machine (role -> path, Hub id or text of a workload); of no
    consequence for the result, which the fingerprints in the recipe pin down. blocked: why it cannot be run
    here, None if it can.
    """

    kind: str
    recipe: Mapping[str, Any]
    needs: Mapping[str, str] = field(default_factory=dict)
    exclusive: bool = False
    sources: Mapping[str, str] = field(default_factory=dict)
    estimate: TaskCost = TaskCost()
    blocked: str | None = None

    @functools.cached_property
    def key(self) -> str:
        """SHA-256 of kind, recipe and the keys of what it needs."""
        content = [SCHEMA_VERSION, self.kind, dict(self.recipe), dict(self.needs)]
        return sha256_of_text(canonical_json(content))


@dataclass(frozen=True)
class StudyCell:
    """One combination of a study's axes by the names that its file gives, and the task that answers it.

    kind: its task's. An axis that does not matter for the kind (the machine of a score) is "".
    """

    kind: str
    task: str
    model: str
    transform: str = ""
    workload: str = ""
    heads: str = ""
    policy: str = ""
    machine: str = ""
    training: str = ""

    @property
    def reader(self) -> str:
        """What its exits are read through by its name, "" for the model's own head."""
        return self.heads or self.training

    @property
    def name(self) -> str:
        """The names joined, as shown: "smollm2 + int8 · prose · league · h100"."""
        model = f"{self.model} + {self.transform}" if self.transform else self.model
        words = (model, self.workload, self.reader, self.policy or self.kind, self.machine)
        return " · ".join(word for word in words if word)


@dataclass(frozen=True)
class StudyJob:
    """Tasks that one process runs, in order, because they share what is expensive (a model, a trace).

    needs: keys of tasks in other jobs that must be done first. threads: of torch. memory_bytes: at the peak.
    """

    name: str
    tasks: tuple[Task, ...]
    needs: tuple[str, ...] = ()
    threads: int = 1
    exclusive: bool = False
    memory_bytes: int = 0

    @property
    def key(self) -> str:
        """SHA-256 of its tasks' keys."""
        return sha256_of_text(canonical_json([task.key for task in self.tasks]))
