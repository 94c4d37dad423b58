"""What may happen to a study's files: changed bytes, a torn journal, an edited study file, a full disk."""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import time
from pathlib import Path
from typing import Any

import pytest
from fault_studies import POLICIES, copy_traces, plan_into, run_jobs, task_files, write_study

from command_line import run_offramp
from offramp.files import TEMPORARY_PREFIX
from offramp.studies.folder import StudyFolder
from offramp.studies.runner import MENDING
from offramp.studies.status import status_of
from offramp.studies.task import Task


@pytest.fixture
def folder(undisturbed: StudyFolder, tmp_path: Path) -> StudyFolder:
    """A copy of the finished study."""
    return StudyFolder(Path(shutil.copytree(undisturbed.path, tmp_path / "study")))


def task_named(folder: StudyFolder, kind: str) -> Task:
    return next(task for task in folder.read_plan().tasks.values() if task.kind == kind)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def started(folder: StudyFolder, since: int) -> list[str]:
    """Kinds of the tasks that were started after so many events."""
    return [event.kind for event in folder.journal.read().events[since:] if event.event == "started"]


@pytest.mark.parametrize("kind", ["trace", "league"])
def test_a_changed_byte_of_a_finished_task_is_found_by_verifying_and_mended(
    kind: str, folder: StudyFolder, fault_study: Path, undisturbed: StudyFolder
) -> None:
    own = folder.task_folder(task_named(folder, kind))
    path = max(own.rglob("*.parquet" if kind == "trace" else "result.json"))
    flip(path)
    events = len(folder.journal.read().events)
    verify = ("study", "status", fault_study, "-o", folder.path, "--verify")
    said = run_offramp(*verify).require(1).out
    assert path.name in said
    assert "damaged" in said
    assert run_jobs(folder, folder.read_plan()) == []
    assert started(folder, events) == [kind]
    assert task_files(folder) == task_files(undisturbed)
    assert "damaged" not in run_offramp(*verify).require(0).out


def test_what_reads_a_damaged_trace_fails_with_the_way_to_mend_it(
    folder: StudyFolder, undisturbed: StudyFolder
) -> None:
    """Its size is right, so that only reading it shows the damage."""
    plan, trace, score = folder.read_plan(), task_named(folder, "trace"), task_named(folder, "score")
    flip(max(folder.task_folder(trace).rglob("facts-*.parquet")))
    shutil.rmtree(folder.task_folder(score))
    assert run_jobs(folder, plan) == []
    failure = folder.failure(score)
    assert failure is not None
    assert "a file of the trace is damaged" in failure.what
    assert failure.fix == MENDING
    assert folder.is_done(trace)

    status = status_of(plan, folder, verify=True)
    assert (status.states[trace.key], status.states[score.key]) == ("damaged", "failed")
    folder.forget_failure(score)
    assert run_jobs(folder, plan) == []
    assert task_files(folder) == task_files(undisturbed)


def test_a_torn_journal_line_costs_nothing_but_itself(
    folder: StudyFolder, fault_study: Path, undisturbed: StudyFolder
) -> None:
    events = folder.journal.read().events
    content = folder.journal.path.read_bytes()
    folder.journal.path.write_bytes(content[:-20])
    said = run_offramp("study", "status", fault_study, "-o", folder.path).require(0).out
    assert f"line {len(events)} of the journal is torn or damaged, and skipped" in said
    shutil.rmtree(folder.task_folder(task_named(folder, "score")))
    assert run_jobs(folder, folder.read_plan()) == []
    assert task_files(folder) == task_files(undisturbed)
    after = folder.journal.read().events
    assert after[: len(events) - 1] == events[:-1]
    assert [event.event for event in after[len(events) - 1 :]] == ["started", "finished"]
    assert folder.journal.path.read_bytes().startswith(content[:-20] + b"\n")


def test_a_study_file_edited_while_it_runs_counts_from_the_next_run(
    tiny_model: Path, documents: Path, undisturbed: StudyFolder, tmp_path: Path
) -> None:
    folder = copy_traces(undisturbed, tmp_path / "study")
    path = write_study(tmp_path / "STUDY.toml", tiny_model, documents)
    plan = plan_into(path, folder)
    write_study(path, tiny_model, documents, (*POLICIES[:-1], "static:exit=4"))
    assert run_jobs(folder, plan) == []
    assert any("STUDY.toml changed since" in problem for problem in status_of(plan, folder).problems)
    assert task_files(folder) == task_files(undisturbed)

    events = len(folder.journal.read().events)
    plan = plan_into(path, folder)
    assert run_jobs(folder, plan) == []
    assert status_of(plan, folder).problems == (
        "1 finished task in the folder that the study does not name (any more): kept, and not shown",
    )
    assert started(folder, events) == ["replay"]
    assert task_files(folder).items() > task_files(undisturbed).items()


def fill_disk(patch: pytest.MonkeyPatch, place: str) -> None:
    """Leave no room for any file of this name, for lines of a journal, or for folders."""
    no_room = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    replace, mkdir = os.replace, Path.mkdir

    def replace_unless_full(source: Path, target: Path) -> None:
        if Path(target).name == place:
            raise no_room
        replace(source, target)

    def make_unless_full(path: Path, *arguments: Any, **options: Any) -> None:
        if path.parent.parent.name == "tasks":
            raise no_room
        mkdir(path, *arguments, **options)

    def write_half(descriptor: int, data: bytes) -> int:
        return len(data) // 2

    patch.setattr(os, "replace", replace_unless_full)
    if place == "journal.jsonl":
        patch.setattr(os, "write", write_half)
    if place == "folders":
        patch.setattr(Path, "mkdir", make_unless_full)


@pytest.mark.parametrize("place", ["result.json", "manifest.json", "journal.jsonl", "folders"])
def test_wherever_the_disk_is_full_nothing_fails_and_the_bytes_are_the_same_later(
    place: str, undisturbed: StudyFolder, tmp_path: Path
) -> None:
    folder = copy_traces(undisturbed, tmp_path / "study")
    plan = folder.read_plan()
    with pytest.MonkeyPatch.context() as patch:
        fill_disk(patch, place)
        stopped = run_jobs(folder, plan)
    assert stopped
    assert all("the disk is full" in what for what in stopped)
    assert {folder.condition(task) for task in plan.tasks.values()} == {"done", "unfinished"}
    assert not list(folder.path.rglob(f"{TEMPORARY_PREFIX}*"))
    assert run_jobs(folder, plan) == []
    assert task_files(folder) == task_files(undisturbed)


def test_a_clock_set_back_changes_no_byte_and_no_duration(undisturbed: StudyFolder, tmp_path: Path) -> None:
    folder = copy_traces(undisturbed, tmp_path / "study")
    plan = folder.read_plan()
    clock = itertools.count(2_000_000_000.0, -1000.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(time, "time", lambda: next(clock))
        assert run_jobs(folder, plan) == []
    assert task_files(folder) == task_files(undisturbed)
    events = folder.journal.read().events
    assert all(before.wall > after.wall for before, after in itertools.pairwise(events))
    took = [event.details["seconds"] for event in events if event.event == "finished"]
    assert len(took) == len(plan.tasks) - 1
    assert all(0 <= seconds < 60 for seconds in took)
    assert set(status_of(plan, folder).states.values()) == {"done"}
