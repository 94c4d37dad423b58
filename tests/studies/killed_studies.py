"""Run a study's tasks in child processes that are killed at random moments; prints what was seen.

`python killed_studies.py FINISHED PLACE KILLS TRACE_KILLS`, as a process of its own, since forking a busy
test process is unsafe. FINISHED: the folder of the study, finished. In PLACE, `study` and `trace` are left,
finished after so many kills: of tasks that need no model, and of a whole study while it traces.
"""

from __future__ import annotations

import collections
import json
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

from fault_studies import copy_traces, damage_in, run_jobs, task_files

from offramp.studies.folder import StudyFolder
from offramp.studies.study import StudyPlan


def kill_after(seconds: float, folder: StudyFolder, plan: StudyPlan) -> bool:
    """Work in a child that is killed so much later; False if it ended by itself."""
    child = os.fork()
    if child == 0:
        os._exit(len(run_jobs(folder, plan)))
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    status = os.waitpid(child, 0)[1]
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def seconds_of(folder: StudyFolder) -> dict[str, float]:
    """How long the tasks took, summed by kind."""
    took: dict[str, float] = collections.defaultdict(float)
    for event in folder.journal.read().events:
        if event.event == "finished":
            took[event.kind] += event.details["seconds"]
    return took


def kill_traces(plan: StudyPlan, place: Path, kills: int, longest: float, generator: random.Random) -> None:
    """Kill a study so many times while it traces, and finish it."""
    folder = StudyFolder(place / "trace")
    for _ in range(kills):
        kill_after(generator.uniform(0.0, longest), folder, plan)
    assert not run_jobs(folder, plan)


def kill_tasks(
    finished: StudyFolder, place: Path, kills: int, longest: float, generator: random.Random
) -> dict[str, Any]:
    """Kill a study with a finished trace so many times, begin again whenever it has ended, and finish it.

    Returns what happened how often, and what was wrong with tasks that counted as done.
    """
    plan, expected = finished.read_plan(), task_files(finished)
    folder = copy_traces(finished, place / "study")
    seen: collections.Counter[str] = collections.Counter()
    problems, killed = [], 0
    while killed < kills:
        before = len(folder.journal.read().events)
        ended = not kill_after(generator.uniform(0.0, longest), folder, plan)
        seen.update(event.event for event in folder.journal.read().events[before:])
        problems += damage_in(folder, plan)
        killed += not ended
        if ended:
            problems += [name for name, content in task_files(folder).items() if content != expected[name]]
            folder = copy_traces(finished, folder.path)
    assert not run_jobs(folder, plan)
    return {"seen": seen, "problems": problems}


def main(finished: StudyFolder, place: Path, kills: int, trace_kills: int) -> None:
    plan = finished.read_plan()
    for name in ("warm-up", "timed"):  # the first one imports what the children then have
        assert not run_jobs(StudyFolder(place / name), plan)
    took = seconds_of(StudyFolder(place / "timed"))
    generator = random.Random(0)
    kill_traces(plan, place, trace_kills, took["trace"], generator)
    longest = sum(took.values()) - took["trace"]
    print(json.dumps(kill_tasks(finished, place, kills, longest, generator)))


if __name__ == "__main__":
    main(StudyFolder(Path(sys.argv[1])), Path(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]))
