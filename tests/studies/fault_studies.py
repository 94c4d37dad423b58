"""A small real study of a tiny model, its files, and ways to start and to kill it, for tests of faults."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from command_line import PROGRAM
from offramp.studies.folder import StudyFolder
from offramp.studies.plan import make_plan
from offramp.studies.runner import run_job
from offramp.studies.study import StudyPlan
from offramp.studies.study_checks import read_study

POLICIES = ("league", "tuned", "static:exit=1", "static:exit=2", "static:exit=3")

STUDY = """
policies = {policies}
machines = ["h100"]

[study]
name = "faults"
tokens = 960
threads = 1
floors = [0.9]
draws = 50

[[models]]
name = "tiny"
source = "{model}"

[[workloads]]
name = "texts"
source = "jsonl:{documents}#text"
"""


def write_study(path: Path, model: Path, documents: Path, policies: Sequence[str] = POLICIES) -> Path:
    """A study file of one model on one workload, priced on a machine that is not this one."""
    path.write_text(STUDY.format(policies=list(policies), model=model, documents=documents))
    return path


def plan_into(study_file: Path, folder: StudyFolder) -> StudyPlan:
    """Plan a study and write the plan into its folder, as `offramp study run` does first."""
    plan = make_plan(read_study(study_file), folder.path)
    folder.write_plan(plan)
    return plan


def run_jobs(folder: StudyFolder, plan: StudyPlan) -> list[str]:
    """Run a plan's jobs one after another in this process; what stopped each that was stopped."""
    outcomes = [run_job(job, folder) for job in plan.jobs]
    return [outcome.stopped.what for outcome in outcomes if outcome.stopped is not None]


def start_study(study_file: Path, folder: Path) -> subprocess.Popen[str]:
    """Start `offramp study run` as the first of a process group of its own."""
    return subprocess.Popen(
        [*PROGRAM, "study", "run", str(study_file), "-o", str(folder)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def kill(process: subprocess.Popen[str], *, group: bool) -> bool:
    """Kill -9 a started study, with its workers or without; False if it had ended by itself."""
    running = process.poll() is None
    with contextlib.suppress(ProcessLookupError):
        if group:
            os.killpg(process.pid, signal.SIGKILL)
        else:
            os.kill(process.pid, signal.SIGKILL)
    process.communicate(timeout=60)
    return running


def wait_for_work(process: subprocess.Popen[str], folder: StudyFolder, before: int) -> None:
    """Wait until something happens in a study of which `before` events are known, or until it ends."""
    while process.poll() is None and len(folder.journal.read().events) <= before:
        time.sleep(0.01)


def task_files(folder: StudyFolder) -> dict[str, bytes]:
    """The bytes of every file below a study's tasks by path; locks, which hold nothing, left out."""
    tasks = folder.path / "tasks"
    return {
        str(path.relative_to(tasks)): path.read_bytes()
        for path in sorted(tasks.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


def copy_traces(finished: StudyFolder, path: Path) -> StudyFolder:
    """A study's folder in which the traces of a finished one are done, and nothing else."""
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(finished.path / "tasks" / "trace", path / "tasks" / "trace")
    shutil.copy(finished.path / "plan.json", path)
    return StudyFolder(path)


def damage_in(folder: StudyFolder, plan: StudyPlan) -> list[str]:
    """What is wrong with the bytes of tasks that count as done, in sentences."""
    return [problem for task in plan.tasks.values() for problem in folder.verify(task)]
