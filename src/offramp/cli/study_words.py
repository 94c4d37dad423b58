"""What the study commands call states, tasks and stretches of time."""

from __future__ import annotations

import collections
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from offramp.studies.status import Status
    from offramp.studies.task import Cell, Plan

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
        "heads": (model, cell.heads),
        "league": (model, cell.workload, cell.heads, cell.machine),
    }.get(kind, (model, cell.workload, cell.heads))
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
