"""A study's folder: what counts as done, what is found damaged, and what is kept for another try."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from folder_cases import Written, do, plan_of, task_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from offramp.errors import DamagedFileError, DiskFullError, ForeignFileError, InputError, WorkloadError
from offramp.files import (
    TEMPORARY_PREFIX,
    canonical_json,
    sha256_of_file,
    sha256_of_text,
    write_sealed_json,
)
from offramp.studies.folder import FILE as PLAN_FILE
from offramp.studies.folder import PLAN, StudyFolder
from offramp.studies.locks import holding
from offramp.studies.status import status_of
from offramp.studies.study import StudyFile, StudyPlan
from offramp.studies.task import (
    DAMAGED,
    FAILURE,
    MANIFEST,
    RESULT,
    TRACE,
    WRITTEN,
    Failure,
    Task,
    TaskCost,
    files_of,
)
from offramp.studies.work.heads import TRAINING
from offramp.studies.work.inputs import EXITS, HEADS, PROFILE
from offramp.studies.work.trace import PASSAGE
from offramp.studies.work.trace import TEXT as TEXT_SIZES
from offramp.studies.work.tune import tuned_file_name

TASK = task_of("score")


def events(folder: StudyFolder) -> list[str]:
    return [event.event for event in folder.journal.read().events]


def test_a_task_is_done_when_its_manifest_is_there_and_not_before(folder: StudyFolder) -> None:
    assert folder.condition(TASK) == "unfinished"
    own = folder.start(TASK)
    (own / RESULT).write_text('{"value": 3}')
    assert folder.condition(TASK) == "unfinished"
    with pytest.raises(InputError, match="no result of this score task"):
        folder.result(Written, TASK)
    folder.finish(TASK, seconds=1.23456)
    assert folder.is_done(TASK)
    assert folder.result(Written, TASK) == {"value": 3}
    assert folder.folder_of_done(TASK.key) == own
    assert folder.finished() == [("score", TASK.key)]
    assert not folder.is_done(task_of("score", 1))
    assert events(folder) == ["started", "finished"]
    assert folder.journal.read().events[1].details == {"seconds": 1.235}


def test_the_manifest_names_every_file_but_locks_records_and_leftovers(folder: StudyFolder) -> None:
    own = folder.start(TASK)
    (own / "trace").mkdir()
    for name in (RESULT, "trace/manifest.json", "trace/a.bin", "trace/.lock", ".lock", "text.json"):
        (own / name).write_text("" if name == "text.json" else name)
    (own / "trace" / f"{TEMPORARY_PREFIX}17-a.bin").write_text("half")
    folder.finish(TASK, 1.0)
    value = json.loads((own / MANIFEST).read_text())
    named = [RESULT, "text.json", "trace/a.bin", "trace/manifest.json"]
    assert value["files"] == {
        name: {"sha256": sha256_of_file(own / name), "bytes": (own / name).stat().st_size} for name in named
    }
    assert (value["kind"], value["key"], value["recipe"]) == ("score", TASK.key, {"number": 0})


def test_a_manifest_of_another_task_vouches_for_nothing(folder: StudyFolder) -> None:
    own, other = do(folder, TASK), task_of("score", 1)
    own.rename(folder.task_folder(other))
    assert folder.condition(other) == "damaged"
    assert folder.condition(TASK) == "unfinished"
    assert folder.folder_of_done(other.key) is None


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> StudyFolder:
    """A study with one task done; tests put back what they change."""
    folder = StudyFolder(tmp_path_factory.mktemp("studies") / "study")
    do(folder, TASK)
    return folder


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=80)
@given(st.data())
def test_any_changed_byte_of_any_file_is_found(whole: StudyFolder, data: st.DataObject) -> None:
    own = whole.task_folder(TASK)
    path = data.draw(st.sampled_from([*files_of(own), own / MANIFEST]))
    written = path.read_bytes()
    changed = bytearray(written)
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    path.write_bytes(changed)
    problems = whole.verify(TASK)
    assert len(problems) == 1
    assert path.name in problems[0]
    assert whole.condition(TASK) == "damaged"
    assert whole.was_damaged(TASK)
    assert whole.folder_of_done(TASK.key) is None
    with pytest.raises(InputError, match="no result"):
        whole.result(Written, TASK)
    (own / DAMAGED).rename(own / MANIFEST)
    path.write_bytes(written)
    assert whole.verify(TASK) == []
    assert whole.is_done(TASK)


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        (RESULT, lambda path: path.write_text('{"number": 8}'), "result.json: its bytes changed"),
        (RESULT, lambda path: path.unlink(), "result.json is missing"),
        (
            MANIFEST,
            lambda path: path.write_text("{}"),
            "manifest.json: it is not what offramp writes (no sha256)",
        ),
        ("trace/part-0.bin", lambda path: os.truncate(path, 39), "part-0.bin has 39 bytes instead of 40"),
        ("trace/part-0.bin", lambda path: path.unlink(), "trace/part-0.bin is missing"),
    ],
)
def test_what_an_ordinary_look_shows_to_be_damaged_is_done_again(
    folder: StudyFolder, name: str, damage: Any, words: str
) -> None:
    own = do(folder, TASK)
    damage(own / name)
    assert folder.condition(TASK) == "damaged"
    assert not folder.was_damaged(TASK)
    with pytest.raises(DamagedFileError, match=r"run the study again(.|\n)*") as caught:
        folder.result(Written, TASK)
    assert words in str(caught.value)
    assert events(folder) == ["started", "finished"]

    assert folder.start(TASK) == own
    assert folder.was_damaged(TASK)
    assert folder.condition(TASK) == "damaged"
    assert not (own / RESULT).exists()
    # A trace is gone on with, and only its damaged parts are traced again.
    assert (own / "trace" / "manifest.json").exists()
    assert events(folder)[2:] == ["damaged", "started"]
    assert words in str(folder.journal.read().events[2].details["problems"])

    do(folder, TASK)
    assert folder.is_done(TASK)
    assert not folder.was_damaged(TASK)


def test_a_byte_of_a_large_file_is_found_only_by_reading_it(folder: StudyFolder) -> None:
    path = do(folder, TASK) / "trace" / "part-0.bin"
    path.write_bytes(bytes(40))
    assert folder.is_done(TASK)
    assert folder.verify(TASK) == [
        "trace/part-0.bin: its bytes changed since it was written (SHA-256 differs)"
    ]
    assert folder.condition(TASK) == "damaged"
    assert folder.verify(TASK) == []


def test_damaged_documents_of_certificates_are_found_by_verifying_and_decoded_again(
    folder: StudyFolder,
) -> None:
    task = task_of("certify")
    request = {"documents": [["d", [1]]], "new_tokens": 2, "layers": 2, "vocabulary": 9}
    answer = {"answer": [3], "exits": [2], "agrees": [True], "layers_executed": 2}
    executions = [{"document": "d", "prompt": [1], "problem": None, **answer}]
    do(folder, task)
    kept = {name: folder.executions / "0123" / f"{name}.json" for name in ("a" * 64, "b" * 64, "notes")}
    whole = kept["a" * 64].with_stem(sha256_of_text(canonical_json(request)))
    for path in (whole, *kept.values()):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_sealed_json(path, {"executions": executions, "request": request})
    impossible = whole.with_stem(sha256_of_text(canonical_json({**request, "layers": 1})))
    write_sealed_json(impossible, {"executions": executions, "request": {**request, "layers": 1}})
    changed = bytearray(kept["b" * 64].read_bytes())
    changed[20] ^= 1
    kept["b" * 64].write_bytes(changed)
    plan = plan_of([task])
    assert status_of(plan, folder).damage == ()
    status = status_of(plan, folder, verify=True)
    assert set(status.damage) > {
        f"executions/0123/{'a' * 64}.json is damaged: it answers another request",
        f"executions/0123/{impossible.name} is damaged: d has an exit deeper than 1, the last layer",
    }
    assert any(what.startswith(f"executions/0123/{'b' * 64}.json is damaged: ") for what in status.damage)
    assert status.problems[:3] == status.damage
    assert status.states == {task.key: "done"}
    # What is whole stays, and so does what has another name than ours.
    assert sorted(folder.executions.glob("*/*")) == sorted([whole, kept["notes"]])
    assert status_of(plan, folder, verify=True).damage == ()


def test_a_task_that_somebody_works_on_is_not_withdrawn(folder: StudyFolder) -> None:
    (do(folder, TASK) / RESULT).write_text("{}")
    with holding(folder.lock_path(TASK)) as held:
        assert held
        assert folder.verify(TASK) == []
    assert (folder.task_folder(TASK) / MANIFEST).exists()
    assert len(folder.verify(TASK)) == 1


def test_a_try_begins_without_what_another_left(folder: StudyFolder) -> None:
    own = folder.start(TASK)
    (own / RESULT).write_text("left by a killed process")
    (own / "notes.txt").write_text("mine")
    (own / f"{TEMPORARY_PREFIX}99-{RESULT}").write_text("half")
    (own / "trace").mkdir()
    (own / "trace" / "part-0.bin").write_text("whole")
    folder.fail(TASK, Failure("it broke"))
    assert folder.start(TASK) == own
    assert {path.name for path in own.rglob("*")} == {"trace", "part-0.bin", "notes.txt"}
    assert folder.condition(TASK) == "unfinished"


def test_failures_are_kept_and_forgotten(folder: StudyFolder) -> None:
    assert folder.failure(TASK) is None
    error = WorkloadError("no text", where="w.txt", fix="give one")
    folder.fail(TASK, Failure.of(error), seconds=2.0)
    assert folder.condition(TASK) == "failed"
    assert folder.failure(TASK) == Failure("no text", "w.txt", "give one", "WorkloadError")
    event = folder.journal.read().events[-1]
    assert (event.event, event.details) == ("failed", {"seconds": 2.0, "what": "no text"})
    folder.forget_failure(TASK)
    assert folder.condition(TASK) == "unfinished"
    assert Failure.of(ZeroDivisionError()) == Failure("ZeroDivisionError", error="ZeroDivisionError")
    folder.fail(TASK, Failure("it broke"))
    do(folder, TASK)
    assert (folder.condition(TASK), folder.failure(TASK)) == ("done", None)


def test_a_damaged_record_of_a_failure_is_still_a_failure(folder: StudyFolder) -> None:
    folder.fail(TASK, Failure("it broke"))
    path = folder.task_folder(TASK) / FAILURE
    path.write_bytes(path.read_bytes().replace(b"broke", b"brake"))
    failure = folder.failure(TASK)
    assert failure is not None
    assert "the record of why is damaged" in failure.what
    assert "--retry" in failure.fix


def test_a_plan_is_read_back_as_it_was(folder: StudyFolder) -> None:
    trace = task_of("trace", seconds=3.5, sources={"model": "smollm2"})
    score = task_of("score", needs={"trace": trace.key}, blocked="the model is not here")
    timed = Task("decode", {"floors": [0.9, 0.8]}, exclusive=True, estimate=TaskCost(1.0, 2, 3))
    plan = plan_of([trace, score, timed], file=StudyFile("smollm2.toml", "0"))
    folder.write_plan(plan)
    assert StudyFolder(folder.path).read_plan() == plan
    path = folder.path / PLAN
    path.write_bytes(path.read_bytes().replace(b"smollm2", b"smollm3", 1))
    with pytest.raises(DamagedFileError, match=r"is damaged: its bytes changed"):
        folder.read_plan()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda plan: replace(plan, jobs=plan.jobs[:1]), "names a task that is not in it"),
        (lambda plan: replace(plan, jobs=plan.jobs[1:]), "which does not come before it"),
        (lambda plan: replace(plan, cells=(replace(plan.cells[0], kind="tune"),)), "of another kind"),
        (lambda plan: replace(plan, cells=(replace(plan.cells[0], model="n"),)), "names a model"),
        (
            lambda plan: replace(plan, cells=(*plan.cells, replace(plan.cells[0], policy="p"))),
            "is in it twice",
        ),
        (lambda plan: replace(plan, cells=(*plan.cells, replace(plan.cells[0], task="t"))), "is in it twice"),
    ],
)
def test_a_plan_that_names_what_it_does_not_hold_is_refused(
    folder: StudyFolder, change: Callable[[StudyPlan], StudyPlan], words: str
) -> None:
    trace = task_of("trace")
    folder.write_plan(change(plan_of([trace, task_of("score", needs={"trace": trace.key})])))
    with pytest.raises(DamagedFileError, match=words):
        folder.read_plan()


def test_nothing_that_a_task_did_not_write_is_its_own(folder: StudyFolder) -> None:
    """Whatever its ending, and whenever it was put there."""
    own = folder.start(TASK)
    (own / "trace").mkdir()
    names = ["notes.json", "mine.parquet", "trace/mine.safetensors", "trace/a.json", "mine/part-00000.json"]
    for name in names:
        (own / name).parent.mkdir(exist_ok=True)
        (own / name).write_text("mine")
    part = own / "trace" / "facts-00000.parquet"
    part.write_text("ours")

    def not_ours() -> bool:
        listed = {path.rpartition(TASK.key + "/")[2] for path in folder.own_files()}
        assert "trace/facts-00000.parquet" in listed
        return listed.isdisjoint(names)

    assert not_ours()
    assert folder.start(TASK) == own
    assert all((own / name).read_text() == "mine" for name in names)
    (own / RESULT).write_text("{}")
    folder.finish(TASK, 1.0)
    assert not_ours()
    for name in names[:2]:  # nor is a task damaged for want of them
        (own / name).unlink()
    assert folder.is_done(TASK)
    assert folder.verify(TASK) == []


def test_every_kind_of_work_writes_what_is_known_as_a_tasks_own() -> None:
    fixed = {HEADS, EXITS, PROFILE, PASSAGE, TEXT_SIZES, TRAINING, TRACE, RESULT, "files"}
    for name in (*fixed, tuned_file_name(0.95)):
        assert any(fnmatchcase(name, one) for one in WRITTEN), name
    assert len(WRITTEN) == len(fixed) + 1


@pytest.mark.parametrize(
    ("study", "place"),
    [
        ({"models": [{"name": "a", "base": 7}]}, r"study\.models\[1\]\.base"),
        ({"models": [{"name": "a", "parameters": "many"}]}, r"study\.models\[1\]\.parameters"),
        ({"workloads": "prose"}, r"study\.workloads"),
        ({"study": {"name": "made-up", "floors": None}}, r"study\.study\.floors"),
        ({"lab": {}}, r"study\.lab"),
    ],
)
def test_a_plan_that_another_program_sealed_is_refused(
    folder: StudyFolder, study: dict[str, Any], place: str
) -> None:
    path = folder.path / PLAN
    folder.write_plan(plan_of([TASK]))
    plan = json.loads(path.read_text())
    write_sealed_json(path, {**plan, "study": {**plan["study"], **study}})
    with pytest.raises(ForeignFileError, match=rf"not what offramp writes \({place}") as caught:
        folder.read_plan()
    assert caught.value.exit_code == 2


def test_a_folder_without_a_plan_is_no_study(folder: StudyFolder) -> None:
    with pytest.raises(InputError, match="there is no such folder"):
        folder.read_plan()
    assert not folder.path.exists()


def test_a_plan_of_a_newer_offramp_is_refused(folder: StudyFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as newer:
        newer.setattr("offramp.studies.folder.FILE", replace(PLAN_FILE, version=99))
        folder.write_plan(plan_of([TASK]))
    with pytest.raises(DamagedFileError, match="its schema version is 99, and this one reads 4"):
        folder.read_plan()


@pytest.mark.parametrize("place", ["", MANIFEST, RESULT])
def test_what_stands_in_the_place_of_a_tasks_files_is_damage_and_left_there(
    folder: StudyFolder, place: str
) -> None:
    do(folder, TASK)
    own = folder.task_folder(TASK)
    mine = own / place / "mine.txt" if place else own
    if place:
        (own / place).unlink()
        (own / place).mkdir(parents=True)
    else:
        shutil.rmtree(own)
    mine.write_text("mine")
    assert folder.condition(TASK) == "damaged"
    with pytest.raises(InputError, match="something else stands where a task keeps its files"):
        do(folder, TASK)
    assert mine.read_text() == "mine"


@pytest.mark.parametrize(
    ("file", "folder", "said"),
    [
        ("study/locks", "study", "something else stands where the study keeps a folder"),
        ("study", "study", "cannot be made or written"),
        ("study", "study/within", "cannot be made or written"),
    ],
)
def test_a_file_in_the_place_of_a_folder_is_told(tmp_path: Path, file: str, folder: str, said: str) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("in the way")
    with pytest.raises(InputError, match=said) as refused:
        StudyFolder(tmp_path / folder).write_plan(plan_of([TASK]))
    assert refused.value.where == str(max(tmp_path / file, tmp_path / folder))


@pytest.mark.parametrize(
    ("place", "write"),
    [
        (FAILURE, lambda folder: folder.fail(TASK, Failure("it broke"))),
        (PLAN, lambda folder: folder.write_plan(plan_of([TASK]))),
    ],
)
def test_a_full_disk_leaves_nothing_half_written(
    folder: StudyFolder, place: str, write: Callable[[StudyFolder], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of what a task writes while it runs this is held by `test_studies_faults_files.py`."""
    folder.start(TASK)
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", mock.Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        with pytest.raises(DiskFullError, match=rf"the disk is full: .* {re.escape(place)}"):
            write(folder)
    assert not list(folder.path.rglob(place))
    assert not list(folder.path.rglob(f"{TEMPORARY_PREFIX}*"))
    assert folder.condition(TASK) == "unfinished"
    write(folder)
    assert list(folder.path.rglob(place))
