"""How long the rest of a study will take: from estimates, and from how long its finished tasks took."""

from __future__ import annotations

import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from offramp.studies.journal import Event
from offramp.studies.task import Plan, Task


@dataclass(frozen=True)
class TimeLeft:
    """How long what is left will take.

    seconds: of the tasks of which that is known. unknown: the number of tasks of which it is not; with any of
    them, `seconds` is a lower limit.
    """

    seconds: float
    unknown: int


class Pace:
    """How long tasks take, by what finished ones of the same kind took on clocks that only go forward."""

    def __init__(self, plan: Plan, events: Sequence[Event]) -> None:
        took: dict[str, float] = {}
        for event in events:
            if event.event == "finished" and event.task in plan.tasks:
                took[event.task] = event.details["seconds"]
        durations, ratios = defaultdict(list), defaultdict(list)
        for key, seconds in took.items():
            task = plan.tasks[key]
            durations[task.kind].append(seconds)
            if task.estimate.seconds:
                ratios[task.kind].append(seconds / task.estimate.seconds)
        self._durations = {kind: statistics.median(values) for kind, values in durations.items()}
        self._ratios = {kind: statistics.median(values) for kind, values in ratios.items()}

    def seconds(self, task: Task) -> float | None:
        """What a task will take, None if unknown.

        Its estimate, times the median of how much longer finished tasks of its kind took than theirs said;
        without an estimate, the median of what its kind took.
        """
        if task.estimate.seconds is None:
            return self._durations.get(task.kind)
        return task.estimate.seconds * self._ratios.get(task.kind, 1.0)


def time_left(
    plan: Plan, ahead: Collection[str], running: Collection[str], events: Sequence[Event], workers: int
) -> TimeLeft:
    """How long the tasks `ahead` will take; of those that are `running`, what they have run for is taken off.

    ahead, running: keys of tasks, the latter among the former. Jobs that are exclusive run one after another;
    of the others `workers` at a time, but no sooner than the longest of them.
    """
    pace, since = Pace(plan, events), _seconds_since_start(events)
    alone, beside, unknown = 0.0, [0.0], 0
    for job in plan.jobs:
        expected = {task.key: pace.seconds(task) for task in job.tasks if task.key in ahead}
        known = {key: seconds for key, seconds in expected.items() if seconds is not None}
        unknown += len(expected) - len(known)
        run = {key: since.get(key, 0.0) for key in known if key in running}
        seconds = sum(max(0.0, seconds - run.get(key, 0.0)) for key, seconds in known.items())
        if job.exclusive:
            alone += seconds
        else:
            beside.append(seconds)
    return TimeLeft(alone + max(max(beside), sum(beside) / workers), unknown)


def _seconds_since_start(events: Sequence[Event]) -> dict[str, float]:
    """Seconds since this machine last started a task, by its key."""
    now = time.monotonic()
    return {
        event.task: max(0.0, now - event.monotonic)
        for event in events
        if event.event == "started" and event.host == platform.node()
    }
