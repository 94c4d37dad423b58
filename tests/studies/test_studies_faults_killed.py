"""A study killed at random moments: what counts as done is whole, and the end is as if undisturbed."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fault_studies import copy_traces, damage_in, kill, start_study, task_files, wait_for_work

from command_line import finish
from offramp.studies.folder import StudyFolder

pytestmark = pytest.mark.slow

KILLS, TRACE_KILLS, COMMAND_KILLS = 10, 1, 3
SCRIPT = Path(__file__).with_name("killed_studies.py")
LONGEST_AT_WORK = 1.5
"""Seconds until a command at work is killed."""


def test_tasks_killed_at_random_moments_end_with_the_same_bytes(
    undisturbed: StudyFolder, tmp_path: Path
) -> None:
    paths = [str(SCRIPT.parent), str(SCRIPT.parent.parent), os.environ.get("PYTHONPATH", "")]
    command = [sys.executable, SCRIPT, undisturbed.path, tmp_path, str(KILLS), str(TRACE_KILLS)]
    done = subprocess.run(
        [str(part) for part in command],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)},
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert said["problems"] == []
    # It was worth it: tasks were cut off in the middle.
    assert said["seen"]["started"] - said["seen"].get("finished", 0) >= KILLS // 4, said
    for name in ("study", "trace"):
        assert task_files(StudyFolder(tmp_path / name)) == task_files(undisturbed)


def test_commands_killed_with_their_workers_or_alone_end_with_the_same_bytes(
    fault_study: Path, undisturbed: StudyFolder, tmp_path: Path
) -> None:
    folder = copy_traces(undisturbed, tmp_path / "study")
    plan, generator = undisturbed.read_plan(), random.Random(0)
    for number in range(COMMAND_KILLS):
        process = start_study(fault_study, folder.path)
        wait_for_work(process, folder, len(folder.journal.read().events))
        time.sleep(generator.uniform(0.0, LONGEST_AT_WORK))
        ended = not kill(process, group=number % 2 == 0)
        assert damage_in(folder, plan) == []
        if ended or all(folder.is_done(task) for task in plan.tasks.values()):
            assert task_files(folder) == task_files(undisturbed)
            folder = copy_traces(undisturbed, folder.path)
    finish(start_study(fault_study, folder.path)).require(0)
    assert task_files(folder) == task_files(undisturbed)
