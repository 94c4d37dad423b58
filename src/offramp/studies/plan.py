"""The plan of a study: its cells, the tasks behind them and the jobs that run them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from offramp.files import sha256_of_file
from offramp.studies.availability import find_everything
from offramp.studies.expansion import expand
from offramp.studies.fingerprints import FILE, Fingerprints
from offramp.studies.found import Found
from offramp.studies.study import Study
from offramp.studies.task import PLANNED_BY, Job, Plan, Task


def jobs_of(tasks: Mapping[str, Task], names: Mapping[str, str], threads: int) -> tuple[Job, ...]:
    """Jobs in an order in which each comes after what it needs: timings of the machine, heads, traces with
    all that is made of one, certificates, and what is timed in decoding.

    tasks: by key. names: of the jobs that begin with a task, by its key. threads: of torch.
    """
    groups: dict[tuple[str, str], list[Task]] = {}
    for task in tasks.values():
        groups.setdefault((_stage(task), _shared(task)), []).append(task)
    ordered = sorted(groups.items(), key=lambda group: STAGES.index(group[0][0]))
    return tuple(_job(group, names, threads) for _, group in ordered)


OTHERS = "others"
STAGES = ("profile", "heads", "training", "trace", "certify", "decode", "combine", OTHERS)


def _stage(task: Task) -> str:
    if task.kind in STAGES:
        return task.kind
    return "trace" if _reads_its_trace(task) else OTHERS


def _reads_its_trace(task: Task) -> bool:
    """Whether it runs in the job of its trace: it loads no model."""
    return "trace" in task.needs and "model" not in task.recipe


def _shared(task: Task) -> str:
    """What the tasks of one job have in common."""
    if _reads_its_trace(task):
        return task.needs["trace"]
    if _stage(task) in ("certify", "decode", "combine", OTHERS) and "model" in task.recipe:
        # One after another on one loaded model.
        model = task.recipe["model"]
        return f"{model.get('fingerprint') or model['source']} {model['transforms']}"
    return task.key


def _job(tasks: Sequence[Task], names: Mapping[str, str], threads: int) -> Job:
    own = {task.key for task in tasks}
    needs = dict.fromkeys(key for task in tasks for key in task.needs.values() if key not in own)
    return Job(
        name=names[tasks[0].key],
        tasks=tuple(tasks),
        needs=tuple(needs),
        threads=threads if any("model" in task.recipe for task in tasks) else 1,
        exclusive=any(task.exclusive for task in tasks),
        memory_bytes=max(_memory(tasks), default=0),
    )


def _memory(tasks: Iterable[Task]) -> list[int]:
    known = [task.estimate.memory_bytes for task in tasks]
    return [size for size in known if size is not None]


FILLED_IN = ("layers", "hidden", "vocabulary", "parameters")
"""Facts of a model that its files tell if the study does not."""


def make_plan(study: Study, folder: Path | None = None, *, download: bool = False) -> Plan:
    """Lay a study out. Nothing is run and no weight is loaded.

    folder: the study's own, where fingerprints of files are kept from one plan to the next; None: nowhere.
    download: fetch models from the Hub that are not here; without, their tasks are blocked, with the reason.

    Raises InputError, with the line, for what the study names and is not there, does not fit together, or is
    there twice; OfframpError if the disk is full.
    """
    fingerprints = Fingerprints(None if folder is None else folder / FILE)
    try:
        found = find_everything(study, fingerprints, download=download)
    finally:
        fingerprints.save()  # what took long to find out is kept, whatever else is wrong
    expanded = expand(study, found)
    jobs = jobs_of(expanded.tasks, expanded.names, study.settings.threads)
    return Plan(_described(study, found), expanded.cells, jobs, found.unavailable, found.damaged)


def _described(study: Study, found: Found) -> dict[str, Any]:
    """Everything that the study says, with sizes of models and texts and its file."""
    value = study.to_json()
    for model in value["models"]:
        here = found.models[model["name"]]
        model.update({name: getattr(here, name) for name in FILLED_IN})
    for workload in value["workloads"]:
        workload["documents"] = found.workloads[workload["name"]].documents
    if study.path.is_file():
        value["file"] = {"path": str(study.path.absolute()), "sha256": sha256_of_file(study.path)}
    if study.inline:
        value[PLANNED_BY] = "offramp run"
    return value
