"""Tasks on tiny models, run in this process without a plan around them."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from offramp.kit.code import code_of
from offramp.models.source import find_source
from offramp.studies.task import Task
from offramp.studies.work.work import ModelCache, WorkContext, perform, works
from offramp.workloads.registry import load_workload

TOKENS, DOCUMENT_TOKENS = 480, 10
FLOORS = [0.9, 0.5]
SEED = 0


class Bench:
    """A model, a workload and the folders of tasks that were run on them."""

    def __init__(self, root: Path, model: Path, workload: str, transforms: tuple[str, ...] = ()) -> None:
        self.root = root
        self.model, self.workload, self.transforms = str(model), workload, transforms
        self.models = ModelCache()
        self.folders: dict[str, Path] = {}

    def common(self) -> dict[str, Any]:
        """What the recipe of every kind that loads the model holds."""
        base = find_source(self.model).identity.base_fingerprint
        return {
            "model": {"fingerprint": base, "transforms": list(self.transforms)},
            "dtype": "float32",
        }

    def workload_recipe(self) -> dict[str, Any]:
        kind = self.workload.partition(":")[0]
        return {"kind": kind, "fingerprint": load_workload(self.workload).fingerprint}

    def sources(self) -> dict[str, str]:
        return {"model": self.model, "workload": self.workload}

    def trace_task(self, **changes: Any) -> Task:
        recipe = {
            **self.common(),
            "workload": self.workload_recipe(),
            "tokens": TOKENS,
            "document_tokens": DOCUMENT_TOKENS,
            "context": None,
            "exits": "all",
            "signals": [],
            "stream": False,
            "memory": None,
        }
        return planned("trace", {**recipe, **changes}, sources=self.sources())

    def run(self, task: Task, inputs: dict[str, Path] | None = None, *, name: str | None = None) -> Path:
        """Run a task in a folder of its own; the folder."""
        folder = self.root / (name or task.kind)
        folder.mkdir(parents=True, exist_ok=True)
        kind = works()[task.kind]
        needs = {role: role for role in inputs or {} if role in kind.roles()}
        task = dataclasses.replace(task, needs={**needs, **task.needs})
        given = {task.needs[role]: path for role, path in (inputs or {}).items() if role in task.needs}
        context = WorkContext(folder, given, self.models, self.root / "executions", task.recipe)
        perform(task, context)
        return folder


def planned(kind: str, recipe: dict[str, Any], **options: Any) -> Task:
    """A task of the code that runs here."""
    common = {"code": code_of(works()[kind].__module__), "versions": {"numpy": np.__version__}, "threads": 1}
    return Task(kind, {**common, **recipe}, **options)


def result_of(folder: Path) -> dict[str, Any]:
    value: dict[str, Any] = json.loads((folder / "result.json").read_text())
    return value


def with_recipe(task: Task, **changes: Any) -> Task:
    """The task with a part of its recipe changed."""
    return dataclasses.replace(task, recipe={**task.recipe, **changes})


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file's bytes but locks, by path."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
