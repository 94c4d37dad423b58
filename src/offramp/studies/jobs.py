"""Grouping a study's tasks into jobs: each a process that loads a model or reads a trace once."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from offramp.studies.task import Job, Task

OF_TRACE = ("score", "replay", "league", "tune")
"""Kinds whose tasks run in the job of their trace."""


def jobs_of(tasks: Mapping[str, Task], names: Mapping[str, str], threads: int) -> tuple[Job, ...]:
    """Jobs in an order in which each comes after what it needs: timings of the machine, heads, traces with
    all that is made of one, pairs, certificates, and what is timed in decoding.

    tasks: by key. names: of the jobs that begin with a task, by its key. threads: of torch.
    """
    groups: dict[tuple[str, str], list[Task]] = {}
    for task in tasks.values():
        groups.setdefault((_stage(task), _shared(task)), []).append(task)
    ordered = sorted(groups.items(), key=lambda group: STAGES.index(group[0][0]))
    return tuple(_job(group, names, threads) for _, group in ordered)


STAGES = ("profile", "heads", "trace", "pair", "certify", "decode", "combine")


def _stage(task: Task) -> str:
    return "trace" if task.kind in OF_TRACE else task.kind


def _shared(task: Task) -> str:
    """What the tasks of one job have in common."""
    if task.kind in OF_TRACE:
        return task.needs["trace"]
    if task.kind in ("certify", "decode", "combine"):
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
