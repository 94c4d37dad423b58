"""How `offramp study plan` shows what is planned: every cell, or groups of them, and what the rest takes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.cli.study_table import (
    AHEAD,
    DONE,
    FAILED,
    IMPOSSIBLE,
    TO_DO,
    count_cells,
    counts_text,
    lasting,
    problem_lines,
    show_head,
    shown_model,
    state_shown,
    study_json,
    task_names,
    unavailable_lines,
)
from offramp.kit.numbers import shown_size
from offramp.report.formats import counted
from offramp.report.table import Cell, Column, Table
from offramp.studies.task import AXES
from offramp.tuning.certifiable import certifiable_words

if TYPE_CHECKING:
    from rich.console import Console

    from offramp.studies import task as tasks
    from offramp.studies.status import Status
    from offramp.studies.study import Plan
    from offramp.studies.task import Task, TaskCost

TONES = {DONE: "good", FAILED: "invalid", IMPOSSIBLE: "quiet"}
"""The colours of states."""

MOST_CELLS_SHOWN = 40
"""A larger plan is shown in groups of cells."""

GROUPINGS: tuple[Callable[[tasks.Cell], tuple[str, ...]], ...] = (
    lambda cell: (shown_model(cell), cell.workload, cell.kind),
    lambda cell: (shown_model(cell), cell.workload),
    lambda cell: (shown_model(cell),),
)
"""What cells may be put together by, the finest first; the last is taken however many groups it gives."""


def show_plan(console: Console, plan: Plan, status: Status, folder: Path) -> None:
    """The cells (of a large study: groups of them), what cannot be had, and what the rest will take."""
    show_head(console, plan, folder)
    many = len(plan.cells) > MOST_CELLS_SHOWN
    if many:
        console.print(GROUPS.rich(planned_groups(plan, status)))
    else:
        console.print(CELLS.rich(planned_tasks(plan, status)))
    for line in (*certifiable_lines(plan), *effort_lines(plan, status)):
        console.print(line, markup=False)
    for line in (*unavailable_lines(plan), *problem_lines(status)):  # paths and commands, whole
        console.print(line, markup=False, soft_wrap=True)


def certifiable_lines(plan: Plan) -> list[str]:
    """Which floors each text's documents could certify at all, where the study asks for certificates."""
    deltas = [task.recipe["delta"] for task in plan.tasks.values() if "delta" in task.recipe]
    if not deltas:
        return []
    floors = plan.study.settings.floors
    return [
        f"{counted(documents, 'document')} of {name} {certifiable_words(documents, floors, min(deltas))}"
        for name, documents in plan.documents.items()
        if documents is not None
    ]


def plan_json(plan: Plan, status: Status, folder: Path) -> dict[str, Any]:
    """The plan as a JSON object: every cell with its state, reason and estimate, and the totals."""
    return {
        **study_json(plan, status, folder),
        "cells": [_cell_json(cell, plan, status) for cell in plan.cells],
        "jobs": len(plan.jobs),
        "work": {**effort(plan, status, AHEAD), "seconds_here": status.left.seconds},
        "elsewhere": {**effort(plan, status, (IMPOSSIBLE,)), "bytes_to_fetch": bytes_to_fetch(plan)},
    }


@dataclass(frozen=True)
class Planned:
    """A task of a plan, under the name of its cell or of what it is shared by."""

    name: str
    state: str
    estimate: TaskCost

    def ahead(self, shown: Callable[[Any], str], value: float | None) -> str:
        """What it takes; what is done takes nothing any more."""
        if self.state not in (*AHEAD, IMPOSSIBLE):
            return ""
        return "?" if value is None else shown(value)


CELLS: Table[Planned] = Table(
    (
        Column(" ", lambda planned: planned.name),
        Column("State", lambda planned: Cell(planned.state, tone=TONES.get(planned.state, ""))),
        Column("Time", lambda planned: planned.ahead(lasting, planned.estimate.seconds)),
        Column("Memory", lambda planned: planned.ahead(shown_size, planned.estimate.memory_bytes)),
        Column("Disk", lambda planned: planned.ahead(shown_size, planned.estimate.disk_bytes)),
    ),
    words=1,
)


def planned_tasks(plan: Plan, status: Status) -> list[Planned]:
    """Every cell, then the tasks that they share."""
    names = task_names(plan)
    shown = [(cell.name, plan.tasks[cell.task]) for cell in plan.cells]
    own = {cell.task for cell in plan.cells}
    shared = [(names.get(key, task.kind), task) for key, task in plan.tasks.items() if key not in own]
    return [Planned(name, state_shown(task.key, status), task.estimate) for name, task in (*shown, *shared)]


@dataclass(frozen=True)
class Group:
    """Cells of a large plan that are shown as one line."""

    name: str
    states: Sequence[str]
    time: str


def _state_column(state: str, name: str) -> Column[Group]:
    return Column(name, lambda group: f"{group.states.count(state):,}")


GROUPS: Table[Group] = Table(
    (
        Column(" ", lambda group: group.name),
        Column("Cells", lambda group: f"{len(group.states):,}"),
        _state_column(DONE, "Done"),
        _state_column(TO_DO, "To do"),
        _state_column(FAILED, "Failed"),
        _state_column(IMPOSSIBLE, "Not here"),
        Column("Time", lambda group: group.time),
    ),
    words=1,
)


def planned_groups(plan: Plan, status: Status) -> list[Group]:
    """Groups of cells with the time of what is not done; a task that several share counts for the first."""
    counted_already: set[str] = set()
    groups = []
    for group, cells in grouped(plan.cells).items():
        tasks = [task for task in _tasks_of(cells, plan) if task.key not in counted_already]
        counted_already |= {task.key for task in tasks}
        left = [task for task in tasks if state_shown(task.key, status) in (*AHEAD, IMPOSSIBLE)]
        known = [task.estimate.seconds for task in left if task.estimate.seconds is not None]
        name = " · ".join(part for part in group if part)
        states = [state_shown(cell.task, status) for cell in cells]
        groups.append(Group(name, states, lasting(sum(known)) if known else "?" if left else ""))
    return groups


def grouped(cells: Sequence[tasks.Cell]) -> Mapping[tuple[str, ...], list[tasks.Cell]]:
    """The cells by the finest grouping that gives few enough groups."""
    groups: dict[tuple[str, ...], list[tasks.Cell]] = {}
    for grouping in GROUPINGS:
        groups = {}
        for cell in cells:
            groups.setdefault(grouping(cell), []).append(cell)
        if len(groups) <= MOST_CELLS_SHOWN:
            break
    return groups


def effort(plan: Plan, status: Status, states: Sequence[str]) -> dict[str, Any]:
    """What the tasks in some states take: seconds one after another, memory of the largest, disk of all.

    unknown: tasks of which no time is known.
    """
    tasks = [task for task in plan.tasks.values() if state_shown(task.key, status) in states]
    known = [task.estimate.seconds for task in tasks if task.estimate.seconds is not None]
    return {
        "tasks": len(tasks),
        "seconds": sum(known),
        "unknown": len(tasks) - len(known),
        "memory_bytes": max((task.estimate.memory_bytes or 0 for task in tasks), default=0),
        "disk_bytes": sum(task.estimate.disk_bytes or 0 for task in tasks),
    }


def bytes_to_fetch(plan: Plan) -> int:
    """Bytes of the models that are not on this machine and whose sizes are known, at two bytes a weight."""
    missing = [model.parameters for model in plan.study.models if model.name in plan.unavailable]
    return sum(round(2 * parameters) for parameters in missing if parameters)


def effort_lines(plan: Plan, status: Status) -> list[str]:
    """How many cells there are of each state, and what those that are not done take here and elsewhere."""
    lines = [f"{counts_text(count_cells(plan, status))}."]
    here, elsewhere = effort(plan, status, AHEAD), effort(plan, status, (IMPOSSIBLE,))
    if here["tasks"]:
        lines.append(
            f"Left to run: {_effort_text(here)}, about {lasting(status.left.seconds)} on these cores."
        )
    else:
        lines.append("There is nothing left to run here.")
    fetched = bytes_to_fetch(plan)
    models = f"some {shown_size(fetched)} of models to fetch" if fetched else ""
    if elsewhere["tasks"]:
        more = f"; {models}" if models else ""
        lines.append(f"Not to be had here, at this machine's pace: {_effort_text(elsewhere)}{more}.")
    elif models:
        lines.append(f"Not to be had here: {models}.")
    return lines


def _effort_text(found: Mapping[str, Any]) -> str:
    unknown = f" and {counted(found['unknown'], 'task')} of unknown time" if found["unknown"] else ""
    return (
        f"{counted(found['tasks'], 'task')}: {lasting(found['seconds'])} of work{unknown}, "
        f"{shown_size(found['memory_bytes'])} of memory for the largest, {shown_size(found['disk_bytes'])} "
        "of disk"
    )


def _cell_json(cell: tasks.Cell, plan: Plan, status: Status) -> dict[str, Any]:
    estimate = plan.tasks[cell.task].estimate
    return {
        "name": cell.name,
        "kind": cell.kind,
        **{axis: getattr(cell, axis) for axis in AXES},
        "task": cell.task,
        "state": state_shown(cell.task, status),
        "reason": status.reasons.get(cell.task, ""),
        "seconds": estimate.seconds,
        "memory_bytes": estimate.memory_bytes,
        "disk_bytes": estimate.disk_bytes,
    }


def _tasks_of(cells: Iterable[tasks.Cell], plan: Plan) -> list[Task]:
    """The tasks of some cells and all that they need, each once."""
    found: dict[str, Task] = {}
    ahead = [cell.task for cell in cells]
    while ahead:
        task = plan.tasks[ahead.pop()]
        if task.key not in found:
            found[task.key] = task
            ahead += task.needs.values()
    return list(found.values())
