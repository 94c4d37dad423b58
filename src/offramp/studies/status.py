"""Where a study stands: what is done, running, failed and left, and how long the rest will take."""

from __future__ import annotations

import collections
import os
import platform
import statistics
import time
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from offramp.files import sha256_of_file
from offramp.studies.folder import StudyFolder
from offramp.studies.journal import Event
from offramp.studies.locks import holder, is_held, silent_seconds
from offramp.studies.study import StudyPlan
from offramp.studies.task import Failure, Task


@dataclass(frozen=True)
class TimeLeft:
    """How long what is left will take."""

    seconds: float
    """Of the tasks of which that is known."""
    unknown: int
    """The number of tasks of which it is not; with any of them, `seconds` is a lower limit."""


class Pace:
    """How long tasks take, by what finished ones of the same kind took on clocks that only go forward."""

    def __init__(self, plan: StudyPlan, events: Sequence[Event]) -> None:
        took: dict[str, float] = {}
        for event in events:
            if event.event == "finished" and event.task in plan.tasks and event.seconds is not None:
                took[event.task] = event.seconds
        finished: dict[str, list[tuple[Task, float]]] = defaultdict(list)
        for key, seconds in took.items():
            finished[plan.tasks[key].kind].append((plan.tasks[key], seconds))
        self._means = {kind: statistics.mean(seconds for _, seconds in of) for kind, of in finished.items()}
        self._ratios: dict[str, float] = {}
        for kind, of in finished.items():
            known = [(task.estimate.seconds, seconds) for task, seconds in of if task.estimate.seconds]
            if known:
                estimated, spent = map(sum, zip(*known, strict=True))
                self._ratios[kind] = spent / estimated

    def seconds(self, task: Task) -> float | None:
        """What a task will take, None if unknown.

        Its estimate, times how much longer finished tasks of its kind took, all together, than theirs said:
        what is asked for is a sum, to which long tasks give most. Without an estimate, the mean of its kind.
        """
        if task.estimate.seconds is None:
            return self._means.get(task.kind)
        return task.estimate.seconds * self._ratios.get(task.kind, 1.0)


def time_left(
    plan: StudyPlan, ahead: Collection[str], running: Collection[str], events: Sequence[Event], workers: int
) -> TimeLeft:
    """How long the tasks `ahead` will take, less what those that are `running` have run.

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


State = Literal["done", "running", "failed", "waiting", "blocked", "damaged"]
SAID_AFTER = 60.0
"""Seconds without a sign of life of a running task's process that are mentioned."""

STATES: tuple[State, ...] = get_args(State)


@dataclass(frozen=True)
class Status:
    """Where a study stands."""

    states: Mapping[str, State]
    """Of every task, by key."""
    cells: Mapping[State, int]
    """How many cells are in each state."""
    failures: Mapping[str, Failure]
    """Of failed tasks, by key."""
    reasons: Mapping[str, str]
    """Why a task cannot go on (one that it needs failed, or it cannot be run here) or counts as damaged, by
    key."""
    left: TimeLeft
    """Of what can go on."""
    damage: tuple[str, ...]
    """That was found by reading every byte, if it was, one sentence a file."""
    problems: tuple[str, ...]
    """What else a person should know, one sentence each, the damage first."""


def status_of(
    plan: StudyPlan, folder: StudyFolder, *, verify: bool = False, workers: int | None = None
) -> Status:
    """Where the study of a plan stands in a folder.

    verify: read every byte of every finished task first, and of what was decoded for certificates; what is
    damaged is then to be done again. workers: jobs at a time, for the time left; None: as many as the cores
    at hand allow.
    """
    damage: list[str] = []
    if verify:
        damage += [
            f"{task.kind} task {task.key[:12]}: {problem}"
            for task in plan.tasks.values()
            for problem in folder.verify(task)
        ]
        damage += folder.verify_executions()
    journal = folder.journal.read()
    standing = Standing(plan, folder)
    states = standing.states
    apart = sum(key not in states for _, key in folder.finished())
    finished = "1 finished task" if apart == 1 else f"{apart:,} finished tasks"
    failed = {key: folder.failure(plan.tasks[key]) for key, state in states.items() if state == "failed"}
    counted = collections.Counter(states[cell.task] for cell in plan.cells)
    threads = max((job.threads for job in plan.jobs), default=1)
    at_a_time = workers or max(1, len(os.sched_getaffinity(0)) // threads)
    return Status(
        states=states,
        cells={state: counted[state] for state in STATES},
        failures={key: failure for key, failure in failed.items() if failure is not None},
        reasons=standing.reasons,
        left=time_left(plan, standing.ahead, standing.running, journal.events, at_a_time),
        damage=tuple(damage),
        problems=(
            *damage,
            *journal.problems,
            *_stalled(plan, folder, standing.running),
            *study_file_problems(plan),
            *(
                [f"{finished} in the folder that the study does not name (any more): kept, and not shown"]
                if apart
                else []
            ),
        ),
    )


class Standing:
    """The states of a plan's tasks, worked out in the plan's order: what a task needs comes before it.

    states: by key. reasons: where a state needs one, by key. ahead: keys of the tasks that are being run or
    can be, running: of the former.
    """

    def __init__(self, plan: StudyPlan, folder: StudyFolder) -> None:
        self.states: dict[str, State] = {}
        self.reasons: dict[str, str] = {}
        self.ahead: set[str] = set()
        self.running: set[str] = set()
        self._hindered_by: dict[str, Task] = {}
        for task in plan.tasks.values():
            self._add(task, folder)

    def _add(self, task: Task, folder: StudyFolder) -> None:
        condition = folder.condition(task)
        if condition == "done":
            self.states[task.key] = "done"
        elif is_held(folder.lock_path(task)):
            self.states[task.key] = "running"
            self.ahead.add(task.key)
            self.running.add(task.key)
        elif condition == "failed":
            self.states[task.key] = "failed"
            self._hindered_by[task.key] = task
        else:
            self._add_undone(task, damaged=condition == "damaged")

    def _add_undone(self, task: Task, *, damaged: bool) -> None:
        """A task that nobody works on, and that was not tried.

        What it hangs on, directly or not, and which will not be done as things are, may hinder it.
        """
        hindering = (self._hindered_by[need] for need in task.needs.values() if need in self._hindered_by)
        hindrance = task if task.blocked is not None else next(hindering, None)
        if hindrance is not None:
            blocked = hindrance.blocked is not None
            self.states[task.key] = "blocked" if blocked else "waiting"
            self.reasons[task.key] = _reason(task, hindrance)
            self._hindered_by[task.key] = hindrance
            return
        self.ahead.add(task.key)
        self.states[task.key] = "damaged" if damaged else "waiting"
        if damaged:
            self.reasons[task.key] = "a file of it changed since it was done; the next run does it again"


def _reason(task: Task, hindrance: Task) -> str:
    if hindrance.blocked is None:
        return f"it needs the {hindrance.kind} task {hindrance.key[:12]}, which failed"
    if hindrance is task:
        return hindrance.blocked
    return f"it needs a {hindrance.kind} task that cannot be run here: {hindrance.blocked}"


def _stalled(plan: StudyPlan, folder: StudyFolder, running: Iterable[str]) -> list[str]:
    """Running tasks whose processes show no sign of life, one sentence each."""
    silences = []
    for task in (plan.tasks[key] for key in running):
        path = folder.lock_path(task)
        silent, who = silent_seconds(path), holder(path)
        if silent > SAID_AFTER and who is not None:
            silences.append(
                f"the {task.kind} task {task.key[:12]} is held by process {who[0]} on {who[1]}, which has "
                f"shown no sign of life for {silent / 60:.0f} min: offramp study run ends it (--stall-limit)"
            )
    return silences


def study_file_problems(plan: StudyPlan) -> list[str]:
    """Whether the study's file is still the one that the plan was made of, in a sentence if not."""
    file = plan.file
    if file is None:
        return []
    path = Path(file.path)
    if not path.is_file():
        return [f"the study's file {path.name} is gone since this was planned"]
    if sha256_of_file(path) == file.sha256:
        return []
    return [f"the study's file {path.name} changed since this was planned; the next run goes by it"]
