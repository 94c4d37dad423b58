"""Many processes on one study: each task is run by one of them, and every one ends well."""

from __future__ import annotations

from pathlib import Path

import fake_engine
import pytest
from fake_works import events_of, files_under, job_of, plan_of, task_of
from fault_studies import start_study, task_files

from offramp.studies.folder import StudyFolder
from offramp.studies.study import StudyPlan
from offramp.studies.task import StudyJob

pytestmark = pytest.mark.slow

PROCESSES = 5
RUNS = 3
"""Of a real study: each loads torch."""


def jobs_of(*, seconds: float) -> list[StudyJob]:
    """Three jobs of three tasks, and three of one that needs traces of two of them; one is timed alone."""
    jobs, traces = [], []
    for number in range(0, 30, 10):
        trace = task_of(number, "trace", seconds=seconds)
        scores = [task_of(number + more, needs={"trace": trace}, seconds=seconds) for more in (1, 2)]
        needs = {"first": trace, "second": traces[-1]} if traces else {"first": trace}
        traces.append(trace)
        timed = {"seconds": seconds, "exclusive": number == 0}
        jobs += [job_of(trace, *scores), job_of(task_of(number + 5, "replay", needs=needs, **timed))]
    return jobs


def require_once(folder: StudyFolder, plan: StudyPlan) -> None:
    """Every task was started once, and finished."""
    assert folder.journal.read().problems == ()
    for task in plan.tasks.values():
        assert events_of(folder, task) == ["started", "finished"]


def test_many_engines_run_every_task_of_a_study_once(tmp_path: Path) -> None:
    alone = StudyFolder(tmp_path / "alone")
    alone.write_plan(plan_of(jobs_of(seconds=0)))
    assert fake_engine.start(alone).wait(timeout=120) == 0

    folder = StudyFolder(tmp_path / "study")
    plan = plan_of(jobs_of(seconds=0.02))
    folder.write_plan(plan)
    engines = [fake_engine.start(folder) for _ in range(PROCESSES)]
    assert [engine.communicate(timeout=200)[0] for engine in engines] == [""] * PROCESSES
    assert [engine.returncode for engine in engines] == [0] * PROCESSES
    require_once(folder, plan)
    assert len({event.process for event in folder.journal.read().events}) > 2
    assert files_under(folder.path) == files_under(alone.path)


def test_runs_of_a_study_on_a_tiny_model_trace_it_once(
    fault_study: Path, undisturbed: StudyFolder, tmp_path: Path
) -> None:
    folder = StudyFolder(tmp_path / "study")
    runs = [start_study(fault_study, folder.path) for _ in range(RUNS)]
    said = [run.communicate(timeout=300)[0] for run in runs]
    assert [run.returncode for run in runs] == [0] * RUNS, said
    assert not any("Traceback" in text for text in said)
    require_once(folder, folder.read_plan())
    assert task_files(folder) == task_files(undisturbed)
