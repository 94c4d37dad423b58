"""How the study commands show what is planned, how it goes on, where it stands and what went wrong."""

from __future__ import annotations

import collections
import contextlib
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.errors import printable
from offramp.kit.numbers import shown_size
from offramp.kit.typed import to_json
from offramp.report.formats import counted
from offramp.report.table import Cell, Column, Table
from offramp.studies.task import AXES
from offramp.tracing.progress import console
from offramp.tuning.verdict_words import certifiable_words

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from offramp.studies import task as tasks
    from offramp.studies.status import Status
    from offramp.studies.study import StudyPlan
    from offramp.studies.task import Failure, Task, TaskCost


DONE, RUNNING, TO_DO, FAILED = "done", "running", "to do", "failed"
DAMAGED = "damaged"
HELD_UP = "waiting for a failed one"
IMPOSSIBLE = "not to be had here"

STYLES: Mapping[str, str] = {
    DONE: "green",
    RUNNING: "cyan",
    TO_DO: "",
    DAMAGED: "yellow",
    FAILED: "red",
    HELD_UP: "yellow",
    IMPOSSIBLE: "dim",
}
"""States in the order in which they are counted, each with its style on a terminal."""

AHEAD = (TO_DO, RUNNING, DAMAGED)
"""States of what will be done as things are."""

UNITS = (("day", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def state_shown(key: str, status: Status) -> str:
    """The state of a task in words; what waits for a failed one will not be done as things are."""
    state = status.states[key]
    if state == "waiting":
        return HELD_UP if key in status.reasons else TO_DO
    return {"blocked": IMPOSSIBLE}.get(state, state)


def count_cells(plan: StudyPlan, status: Status) -> dict[str, int]:
    """How many cells are in each state, zeros left out."""
    counts = collections.Counter(state_shown(cell.task, status) for cell in plan.cells)
    return {state: counts[state] for state in STYLES if counts[state]}


def counts_text(counts: Mapping[str, int], none: str = "no cells") -> str:
    """ "12 done, 3 to do, 1 failed"; `none` where there is nothing to count."""
    return ", ".join(f"{count:,} {state}" for state, count in counts.items()) or none


def task_names(plan: StudyPlan) -> dict[str, str]:
    """What to call every task, by key: a cell's name, or kind and names of what the first cell shares.

    A shared task is named after the axes on which it depends: "trace of smollm2 · prose".
    """
    names: dict[str, str] = {}
    for cell in plan.cells:
        names.setdefault(cell.task, cell.name)
    for cell in plan.cells:
        ahead = list(plan.tasks[cell.task].needs.values())
        while ahead:
            key = ahead.pop()
            names.setdefault(key, _shared_name(plan.tasks[key].kind, cell))
            ahead += plan.tasks[key].needs.values()
    return names


def shown_model(cell: tasks.StudyCell) -> str:
    """Model and transform of a cell: "smollm2 + int8"."""
    return f"{cell.model} + {cell.transform}" if cell.transform else cell.model


def _shared_name(kind: str, cell: tasks.StudyCell) -> str:
    model = shown_model(cell)
    words = {
        "profile": (model,),
        **dict.fromkeys(("heads", "training"), (model, cell.reader)),
        "league": (model, cell.workload, cell.reader, cell.machine),
    }.get(kind, (model, cell.workload, cell.reader))
    return f"{kind} of " + " · ".join(word for word in words if word)


def tasks_text(status: Status) -> str:
    """How many tasks, those that cells share included, are done: "3 of 40 tasks done"."""
    done = sum(state == "done" for state in status.states.values())
    return f"{done:,} of {len(status.states):,} tasks done"


def left_text(status: Status) -> str:
    """How long the rest will take, as far as it is known."""
    if not any(state_shown(key, status) in AHEAD for key in status.states):
        return "nothing left to do"
    if status.left.seconds == 0:
        return "time left not known yet" if status.left.unknown else "longer than expected"
    at_least = "at least" if status.left.unknown else "about"
    return f"{at_least} {lasting(status.left.seconds)} left"


def lasting(seconds: float) -> str:
    """A stretch of time in its two largest units: "40 s", "3 min", "2 h 5 min", "3 days 4 h"."""
    left = max(1, round(seconds))
    if left >= 600:  # seconds would pretend
        left = 60 * round(left / 60)
    parts = []
    for unit, size in UNITS:
        count, left = divmod(left, size)
        if count:
            plural = "s" if unit == "day" and count > 1 else ""
            parts.append(f"{count} {unit}{plural}")
    return " ".join(parts[:2])


MOST_SHOWN = 10
"""Failures, and names that cannot be had for one reason; `--json` has all."""


def show_status(console: Console, plan: StudyPlan, status: Status, folder: Path) -> None:
    """Counts, what runs, what failed and why, and what else a person should know."""
    show_head(console, plan, folder)
    names = task_names(plan)
    running = [names.get(key, key[:12]) for key, state in status.states.items() if state == "running"]
    damaged = [names.get(key, key[:12]) for key, state in status.states.items() if state == "damaged"]
    lines = [
        f"cells: {counts_text(count_cells(plan, status))}",
        f"shared tasks: {_shared_text(plan, status)}",
        *(f"running: {name}" for name in running),
        *(f"damaged: {name}; the next run makes it again" for name in damaged),
        left_text(status),
        *_failure_lines(plan, status),
        *unavailable_lines(plan),
        *problem_lines(status),
    ]
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def show_outcome(console: Console, plan: StudyPlan, status: Status, folder: Path, seconds: float) -> None:
    """What a run came to, what failed and why, and where to look further."""
    lines = [
        f"{counts_text(count_cells(plan, status))}; it took {lasting(seconds)}",
        *_failure_lines(plan, status),
        *unavailable_lines(plan),
        *problem_lines(status),
    ]
    logs = folder / "logs"
    if status.failures:
        said = f"logs: {logs}; " if logs.is_dir() else ""
        lines.append(f"{said}try the failed ones again with --retry")
    for line in lines:
        console.print(line, markup=False, soft_wrap=True)


def show_head(console: Console, plan: StudyPlan, folder: Path) -> None:
    """Which study, how large, and where it lies."""
    settings = plan.study.settings
    title = f"{settings.name}: {settings.title}" if settings.title else settings.name
    console.print(title, markup=False, style="bold", soft_wrap=True)
    console.print(
        f"{counted(len(plan.cells), 'cell')} of {counted(len(plan.tasks), 'task')}, in {folder}",
        markup=False,
        soft_wrap=True,
    )


def study_json(plan: StudyPlan, status: Status, folder: Path) -> dict[str, Any]:
    """What every study command says of a study: name, folder, counts, failures, what cannot be had."""
    names = task_names(plan)
    return {
        "study": plan.study.name,
        "folder": str(folder),
        "counts": count_cells(plan, status),
        "tasks": len(plan.tasks),
        "failures": [
            {"name": names.get(key, key), "task": key, **to_json(failure)}
            for key, failure in status.failures.items()
        ],
        "unavailable": dict(plan.unavailable),
        "damaged_models": list(plan.damaged),
        "seconds_left": status.left.seconds,
        "tasks_of_unknown_time": status.left.unknown,
        "problems": list(status.problems),
    }


def unavailable_lines(plan: StudyPlan) -> list[str]:
    """What cannot be had here and why; names that cannot for the same reason on one line."""
    groups: dict[str, dict[str, str]] = {}
    for name, reason in plan.unavailable.items():
        groups.setdefault(reason.partition(": ")[0], {})[name] = reason
    lines = []
    for reason, found in groups.items():
        names = "; ".join(list(found)[:MOST_SHOWN])  # a name may have a comma
        more = f" and {len(found) - MOST_SHOWN:,} more" if len(found) > MOST_SHOWN else ""
        example = next(iter(found.values())).removeprefix(reason).removeprefix(": ")
        such_as = "such as: " if len(found) > 1 else ""
        hint = f" ({such_as}{example})" if example else ""
        lines.append(f"not to be had here: {names}{more}: {reason}{hint}")
    return lines


def problem_lines(status: Status) -> list[str]:
    """Whatever else a person should know."""
    return [f"note: {problem}" for problem in status.problems]


def _shared_text(plan: StudyPlan, status: Status) -> str:
    """How many shared tasks are in each state."""
    shown = {cell.task for cell in plan.cells}
    states = [state_shown(key, status) for key in plan.tasks if key not in shown]
    return counts_text({state: states.count(state) for state in dict.fromkeys(states)}, none="none")


def _failure_lines(plan: StudyPlan, status: Status) -> list[str]:
    """Every failed task with its three parts, and how many cells wait for them."""
    names = task_names(plan)
    lines = []
    for key, failure in list(status.failures.items())[:MOST_SHOWN]:
        lines += _parts_of(names.get(key, key[:12]), failure)
    more = len(status.failures) - MOST_SHOWN
    if more > 0:
        lines.append(f"and {more:,} more failed; offramp study status --json names all")
    waiting = count_cells(plan, status).get(HELD_UP, 0)
    return [*lines, f"{counted(waiting, 'cell')} waiting for what failed"] if waiting else lines


def _parts_of(name: str, failure: Failure) -> list[str]:
    """One failed task: what, where, what to do."""
    lines = [f"failed: {name}: {failure.what}"]
    if failure.where:
        lines.append(f"  where: {failure.where}")
    if failure.fix:
        lines.append(f"  what to do: {failure.fix}")
    return lines


TONES = {DONE: "good", FAILED: "invalid", IMPOSSIBLE: "quiet"}
"""The colours of states."""

MOST_CELLS_SHOWN = 40
"""A larger plan is shown in groups of cells."""

GROUPINGS: tuple[Callable[[tasks.StudyCell], tuple[str, ...]], ...] = (
    lambda cell: (shown_model(cell), cell.workload, cell.kind),
    lambda cell: (shown_model(cell), cell.workload),
    lambda cell: (shown_model(cell),),
)
"""What cells may be put together by, the finest first; the last is taken however many groups it gives."""


def show_plan(console: Console, plan: StudyPlan, status: Status, folder: Path) -> None:
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


def certifiable_lines(plan: StudyPlan) -> list[str]:
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


def plan_json(plan: StudyPlan, status: Status, folder: Path) -> dict[str, Any]:
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


def planned_tasks(plan: StudyPlan, status: Status) -> list[Planned]:
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


def planned_groups(plan: StudyPlan, status: Status) -> list[Group]:
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


def grouped(cells: Sequence[tasks.StudyCell]) -> Mapping[tuple[str, ...], list[tasks.StudyCell]]:
    """The cells by the finest grouping that gives few enough groups."""
    groups: dict[tuple[str, ...], list[tasks.StudyCell]] = {}
    for grouping in GROUPINGS:
        groups = {}
        for cell in cells:
            groups.setdefault(grouping(cell), []).append(cell)
        if len(groups) <= MOST_CELLS_SHOWN:
            break
    return groups


def effort(plan: StudyPlan, status: Status, states: Sequence[str]) -> dict[str, Any]:
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


def bytes_to_fetch(plan: StudyPlan) -> int:
    """Bytes of the models that are not on this machine and whose sizes are known, at two bytes a weight."""
    missing = [model.parameters for model in plan.study.models if model.name in plan.unavailable]
    return sum(round(2 * parameters) for parameters in missing if parameters)


def effort_lines(plan: StudyPlan, status: Status) -> list[str]:
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


def _cell_json(cell: tasks.StudyCell, plan: StudyPlan, status: Status) -> dict[str, Any]:
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


def _tasks_of(cells: Iterable[tasks.StudyCell], plan: StudyPlan) -> list[Task]:
    """The tasks of some cells and all that they need, each once."""
    found: dict[str, Task] = {}
    ahead = [cell.task for cell in cells]
    while ahead:
        task = plan.tasks[ahead.pop()]
        if task.key not in found:
            found[task.key] = task
            ahead += task.needs.values()
    return list(found.values())


SECONDS_BETWEEN_PICTURES = 0.5
SHARE_OF_TIME = 0.03
"""Of one core, that drawing may take at most: reading where a thousand cells stand takes a while."""
SECONDS_BETWEEN_LINES = 30.0
MOST_TASKS_SHOWN = 8

OnChange = Callable[[], None]
"""What an engine calls whenever something may have changed, and at least once a second."""


@contextlib.contextmanager
def study_progress(plan: StudyPlan, read: Callable[[], Status]) -> Iterator[OnChange]:
    """Show on standard error how a study goes on. read: gives where it stands."""
    if not sys.stderr.isatty():
        yield StudyLines(plan, read).changed
        return
    from rich.live import Live

    with Live(console=console(sys.stderr), transient=True, auto_refresh=False) as live:
        yield Picture(plan, read, lambda shown: live.update(shown, refresh=True)).changed


class StudyLines:
    """A line when it begins, a line when a task failed, and a line now and then."""

    def __init__(self, plan: StudyPlan, read: Callable[[], Status]) -> None:
        self._plan, self._read = plan, read
        self._names = task_names(plan)
        self._next = 0.0
        self._failed = set(read().failures)
        self._started = time.monotonic()

    def changed(self) -> None:
        """Say what is new, and once in a while how far it is."""
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + SECONDS_BETWEEN_LINES
        status = self._read()
        for key, failure in status.failures.items():
            if key not in self._failed:
                print(printable(f"failed: {self._names[key]}: {failure.what}"), file=sys.stderr, flush=True)
        self._failed |= set(status.failures)
        running = [name for key, name in self._names.items() if status.states[key] == "running"]
        doing = f"; now {', '.join(running[:3])}" if running else ""
        print(
            f"after {lasting(now - self._started)}: {counts_text(count_cells(self._plan, status))}; "
            f"{tasks_text(status)}, {left_text(status)}{doing}",
            file=sys.stderr,
            flush=True,
        )


class Picture:
    """Counts with a bar, time left, and what runs at the moment."""

    def __init__(
        self, plan: StudyPlan, read: Callable[[], Status], show: Callable[[RenderableType], None]
    ) -> None:
        self._plan, self._read, self._show = plan, read, show
        self._names = task_names(plan)
        self._since: dict[str, float] = {}
        self._next = 0.0
        self._started = time.monotonic()

    def changed(self) -> None:
        """Draw it again, unless that was done just now."""
        now = time.monotonic()
        if now >= self._next:
            self._show(self.picture(self._read(), now))
            ended = time.monotonic()
            self._next = ended + max(SECONDS_BETWEEN_PICTURES, (ended - now) / SHARE_OF_TIME)

    def picture(self, status: Status, now: float) -> RenderableType:
        """What is shown at `now`, in seconds of a clock that only goes forward."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.text import Text

        counts = count_cells(self._plan, status)
        head = Text()
        for state, count in counts.items():
            head.append(("" if not head else ", ") + f"{count:,} {state}", STYLES[state])
        told = (tasks_text(status), f"{lasting(now - self._started)} so far", left_text(status))
        head.append(f" · {', '.join(told)}", "dim")
        ended = sum(state_shown(key, status) not in AHEAD for key in status.states)
        bar = ProgressBar(total=max(1, len(status.states)), completed=ended, width=60)
        return Group(head, bar, *(Text(line) for line in self._running(status, now)))

    def _running(self, status: Status, now: float) -> list[str]:
        """What is worked on, the longest first, each with how long it was seen to be."""
        running = [key for key, state in status.states.items() if state == "running"]
        self._since = {key: self._since.get(key, now) for key in running}
        running.sort(key=self._since.__getitem__)
        lines = [
            f"  {self._names.get(key, key[:12])}  ({lasting(now - self._since[key])})"
            for key in running[:MOST_TASKS_SHOWN]
        ]
        more = len(running) - len(lines)
        return [*lines, f"  and {more:,} more"] if more else lines
