"""How the study commands show where a study stands, what a run came to, and what went wrong."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.kit.typed import to_json
from offramp.report.formats import counted

if TYPE_CHECKING:
    from rich.console import Console

    from offramp.studies.manifest import Failure
    from offramp.studies.status import Status
    from offramp.studies.study import Plan
    from offramp.studies.task import Cell

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


def count_cells(plan: Plan, status: Status) -> dict[str, int]:
    """How many cells are in each state, zeros left out."""
    counts = collections.Counter(state_shown(cell.task, status) for cell in plan.cells)
    return {state: counts[state] for state in STYLES if counts[state]}


def counts_text(counts: Mapping[str, int], none: str = "no cells") -> str:
    """ "12 done, 3 to do, 1 failed"; `none` where there is nothing to count."""
    return ", ".join(f"{count:,} {state}" for state, count in counts.items()) or none


def task_names(plan: Plan) -> dict[str, str]:
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


def shown_model(cell: Cell) -> str:
    """Model and transform of a cell: "smollm2 + int8"."""
    return f"{cell.model} + {cell.transform}" if cell.transform else cell.model


def _shared_name(kind: str, cell: Cell) -> str:
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


def show_status(console: Console, plan: Plan, status: Status, folder: Path) -> None:
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


def show_outcome(console: Console, plan: Plan, status: Status, folder: Path, seconds: float) -> None:
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


def show_head(console: Console, plan: Plan, folder: Path) -> None:
    """Which study, how large, and where it lies."""
    settings = plan.study.settings
    title = f"{settings.name}: {settings.title}" if settings.title else settings.name
    console.print(title, markup=False, style="bold", soft_wrap=True)
    console.print(
        f"{counted(len(plan.cells), 'cell')} of {counted(len(plan.tasks), 'task')}, in {folder}",
        markup=False,
        soft_wrap=True,
    )


def study_json(plan: Plan, status: Status, folder: Path) -> dict[str, Any]:
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


def unavailable_lines(plan: Plan) -> list[str]:
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


def _shared_text(plan: Plan, status: Status) -> str:
    """How many shared tasks are in each state."""
    shown = {cell.task for cell in plan.cells}
    states = [state_shown(key, status) for key in plan.tasks if key not in shown]
    return counts_text({state: states.count(state) for state in dict.fromkeys(states)}, none="none")


def _failure_lines(plan: Plan, status: Status) -> list[str]:
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
