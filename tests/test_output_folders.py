"""Every kind of folder that offramp writes to, killed at every moment: the same command ends it."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from command_line import tree
from offramp.decoding.execution.execution import EXECUTIONS_FOLDER
from offramp.errors import InputError, OfframpError
from offramp.files import sha256_of_file, write_atomically, write_sealed_json, write_text_atomically
from offramp.heads.file import EXITS_FILE, TRAINING_FILE
from offramp.kit.output_folder import NEW, OutputFolder
from offramp.report import REPORT_FILE
from offramp.report.pages import COMPARISON_FOLDER
from offramp.runs.folder import RUN_FOLDER, SUMMARY_FILE
from offramp.tracing.folder import TRACE_FOLDER
from offramp.tracing.manifest import MANIFEST, Manifest
from offramp.tracing.request import TraceRequest
from offramp.tracing.sealed_parts import REQUEST_KEY, part_path, seal_path
from offramp.training.folder import GATES_FOLDER, TRAINING_FOLDER, clear_working_files
from offramp.training.recipe import Recipe
from offramp.training.record import GATE_RECORD, TrainingIdentity


def write(folder: Path, name: str, content: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    write_text_atomically(folder / name, content)


def write_trace(folder: Path, result: str) -> None:
    """A file of a part, its seal, and the manifest last."""
    table = pa.table({"token": [1]}).replace_schema_metadata({REQUEST_KEY: result})
    write_atomically(folder / "facts-00000.parquet", lambda path: pq.write_table(table, path))
    sealed = {"request": result, "files": {"facts": sha256_of_file(folder / "facts-00000.parquet")}}
    write_sealed_json(seal_path(folder, 0), sealed)
    manifest = {one.name: None for one in fields(Manifest)} | {"request": trace_request(result)}
    write_sealed_json(folder / MANIFEST, manifest)


def write_run(folder: Path, result: str) -> None:
    files = RUN_FOLDER.files(folder)
    with files.writing(REPORT_FILE, SUMMARY_FILE, "policies/a.json"):
        for name in ("policies/a.json", REPORT_FILE, SUMMARY_FILE):
            write(folder, name, result)


def write_training(folder: Path, result: str) -> None:
    write(folder, "states/fit.safetensors", result)
    write(folder, EXITS_FILE, result)
    write(folder, TRAINING_FILE, result)
    clear_working_files(folder)


def write_gates(folder: Path, result: str) -> None:
    write(folder, EXITS_FILE, result)
    write(folder, TRAINING_FILE, json.dumps({"kind": GATE_RECORD.kind, "result": result}))


def write_comparison(folder: Path, result: str) -> None:
    write(folder, "tables/models.csv", result)
    write(folder, f"tables/{result}.csv", result)
    write(folder, REPORT_FILE, result)


def write_executions(folder: Path, result: str) -> None:
    write(folder, f"{'0' * 64}.json", result)


def trace_request(result: str) -> dict[str, Any]:
    return {one.name: result for one in fields(TraceRequest)}


def training_request(result: str) -> TrainingIdentity:
    recipe = Recipe(kind="lens", at=(1,), tokens=9, steps=9, seed=0, units=0, loss_vocabulary=0)
    return TrainingIdentity(recipe, {"name": result}, (), False, False, 0, "cpu", "code")


@dataclass(frozen=True)
class Kind:
    """One kind of folder, with a stand-in for what fills it. asked: of a result, by its name."""

    folder: OutputFolder[Any]
    fill: Callable[[Path, str], None]
    asked: Callable[[str], Any] = lambda result: None

    def make(self, path: Path, result: str, *, overwrite: bool = True) -> Path:
        """What a command does; the folder that it is given for it."""
        with self.folder.claimed(path, self.asked(result), overwrite=overwrite) as place:
            if self.folder.done is None or not self.folder.kept or not (place / MANIFEST).exists():
                self.fill(place, result)
        return place


KINDS = {
    "trace": Kind(TRACE_FOLDER, write_trace, trace_request),
    "run": Kind(RUN_FOLDER, write_run, lambda result: {"tokens": result}),
    "training": Kind(TRAINING_FOLDER, write_training, training_request),
    "gates": Kind(GATES_FOLDER, write_gates),
    "comparison": Kind(COMPARISON_FOLDER, write_comparison),
    "executions": Kind(EXECUTIONS_FOLDER, write_executions),
}


def killing(real: Callable[..., object], left: list[None]) -> Callable[..., object]:
    """A function that kills, in the place of a call, once none is left."""

    def call(*arguments: object, **more: object) -> object:
        if not left:
            raise Killed
        left.pop()
        return real(*arguments, **more)

    return call


class Killed(BaseException):
    """The process is gone: nothing is tidied up."""


def make_killed(kind: Kind, path: Path, result: str, calls: int) -> bool:
    """Make a result, killed at that change of a file's name or existence; whether it ended before."""
    with pytest.MonkeyPatch.context() as patch:
        left: list[None] = [None] * calls
        for name in ("replace", "rename", "unlink", "rmdir", "mkdir"):
            patch.setattr(os, name, killing(getattr(os, name), left))
        try:
            kind.make(path, result)
        except Killed:
            return False
    return True


def seen(path: Path) -> dict[str, bytes]:
    """What people see in a folder."""
    return {name: content for name, content in tree(path).items() if name.partition("/")[0] != NEW}


@pytest.fixture(autouse=True)
def unflushed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine itself goes on: flushing hundreds of files would be the time that all of this takes."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


@pytest.mark.parametrize("before", [None, "old"], ids=["new", "over another"])
@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_killed_at_any_moment_the_same_command_ends_it(
    kind: Kind, before: str | None, tmp_path: Path
) -> None:
    """At each change of a file's name or existence in turn; what the user put there stays."""
    kind.make(tmp_path / "expected", "new")
    expected, ended, calls = seen(tmp_path / "expected"), False, 0
    mine = {} if kind.folder.alone or before is None else {"notes.md": b"mine"}
    while not ended:
        path = tmp_path / str(calls)
        if before is not None:
            kind.make(path, before)
        for name, content in mine.items():
            (path / name).write_bytes(content)
        ended = make_killed(kind, path, "new", calls)
        whole = kind.folder.files(path).left_whole is not None
        place = kind.make(path, "new")
        assert seen(path) == expected | mine, f"killed at change {calls}"
        # What was whole is gone on with, not made a second time.
        assert place == path or not whole or kind.folder.request is None
        assert not list(path.rglob(".writing-*")) + list(path.rglob("*.changed"))
        calls += 1
    assert calls > 2


@pytest.mark.parametrize("kind", [kind for kind in KINDS if KINDS[kind].folder.request is not None])
def test_what_was_killed_is_never_taken_for_another_requests(kind: str, tmp_path: Path) -> None:
    """A third request, without --overwrite, is refused whenever there is something to lose."""
    calls, ended = 0, False
    while not ended:
        path = tmp_path / str(calls)
        KINDS[kind].make(path, "old")
        ended = make_killed(KINDS[kind], path, "new", calls)
        before = tree(path)
        with pytest.raises(OfframpError, match=r"another|missing|damaged"):
            KINDS[kind].make(path, "third", overwrite=False)
        assert tree(path) == before
        calls += 1


def test_a_part_that_was_not_sealed_is_ours_by_what_it_says(tmp_path: Path) -> None:
    """A trace killed within a part, and overwritten; somebody's file of such a name stays."""
    assert TRACE_FOLDER.request is not None
    TRACE_FOLDER.request.write(tmp_path / TRACE_FOLDER.request_name, trace_request("old"))
    table = pa.table({"token": [1]})
    pq.write_table(table.replace_schema_metadata({REQUEST_KEY: "old"}), part_path(tmp_path, "facts", 0))
    pq.write_table(table, part_path(tmp_path, "tokens", 1))
    KINDS["trace"].make(tmp_path, "new")
    assert {path.name for path in tmp_path.glob("*.parquet*")} == {
        "facts-00000.parquet",
        "tokens-00001.parquet",
    }


@pytest.mark.parametrize(
    ("kind", "name", "left"),
    [
        ("trace", "facts-00000.parquet", False),
        ("trace", "facts-00000.parquet", True),
        ("trace", MANIFEST, False),  # left by a kill it is refused
        ("training", EXITS_FILE, False),
        ("training", EXITS_FILE, True),
        ("training", TRAINING_FILE, False),
    ],
)
def test_what_somebody_puts_in_a_files_place_meanwhile_is_kept(
    kind: str, name: str, left: bool, tmp_path: Path
) -> None:
    """Also where the command is killed before it writes that file, and given again."""

    def put(place: Path) -> None:
        (place / name).write_text("mine")

    def killed(place: Path, result: str) -> None:
        put(place)
        raise Killed

    def filled(place: Path, result: str) -> None:
        put(place)
        KINDS[kind].fill(place, result)

    if left:
        with pytest.raises(Killed):
            dataclasses.replace(KINDS[kind], fill=killed).make(tmp_path, "new")
        KINDS[kind].make(tmp_path, "new")
    else:
        dataclasses.replace(KINDS[kind], fill=filled).make(tmp_path, "new")
    assert (tmp_path / f"{name}.changed").read_text() == "mine"
    assert (tmp_path / name).read_bytes() != b"mine"
    KINDS[kind].make(tmp_path, "newer")
    assert (tmp_path / f"{name}.changed").read_text() == "mine"


@pytest.mark.parametrize("kind", [kind for kind in KINDS if kind != "executions"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_somebody_is_left_alone(kind: str, overwrite: bool, tmp_path: Path) -> None:
    write(tmp_path, "thesis.txt", "mine")
    what = KINDS[kind].folder.what
    with pytest.raises(InputError, match=f"holds files that are not {what}: thesis.txt"):
        KINDS[kind].make(tmp_path, "new", overwrite=overwrite)
    assert list(tmp_path.iterdir()) == [tmp_path / "thesis.txt"]


@pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
def test_a_command_that_fails_before_it_left_anything_leaves_nothing(kind: Kind, tmp_path: Path) -> None:
    def refused() -> None:
        with kind.folder.claimed(tmp_path / "out", kind.asked("a"), overwrite=True):
            raise InputError("no")

    with pytest.raises(InputError, match="no"):
        refused()
    assert list(tmp_path.iterdir()) == []
    with contextlib.suppress(InputError):
        kind.make(tmp_path / "out", "b", overwrite=False)
    assert seen(tmp_path / "out")
