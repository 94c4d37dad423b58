"""Executions on disk: read again, made again where damaged, and the same after a kill at any moment."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from execution_cases import POLICY, agreeable_llama, openings_of, options_of

from offramp.decoding.execution import execution as module
from offramp.decoding.execution.execution import Execution, ExecutionStore, execute, request_of
from offramp.decoding.openings import Opening
from offramp.decoding.quality.judging import Judge
from offramp.errors import InputError

NEW = 6
ONE = Execution("d", (1, 2), (3, 4), (4, 2), (True, False), 6)


def never() -> list[Execution]:
    raise AssertionError("it was kept before")


def test_what_was_made_is_never_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "executions"
    with ExecutionStore.open(folder) as store:
        assert store.get_or_make({"a": 1}, lambda: [ONE]) == (ONE,)
        assert store.get_or_make({"a": 1}, never) == (ONE,)
        assert store.get_or_make({"a": 2}, list) == ()
        assert store.made == 1
    with ExecutionStore.open(folder) as store:
        assert store.get_or_make({"a": 1}, never) == (ONE,)
        assert store.made == 0
    with ExecutionStore.open(None) as store:
        assert store.get_or_make({"a": 1}, lambda: [ONE]) == (ONE,)
        assert store.get_or_make({"a": 1}, never) == (ONE,)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_text(path.read_text().replace("true", "false")),
        lambda path: path.write_bytes(path.read_bytes()[:40]),
        lambda path: path.write_text("[]"),
        lambda path: path.write_bytes(b"\xff\xfe"),
    ],
)
def test_damaged_executions_are_made_again(
    damage: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExecutionStore.open(tmp_path) as store:
        store.get_or_make({"a": 1}, lambda: [ONE])
    path = next(tmp_path.glob("*.json"))
    whole = path.read_bytes()
    damage(path)
    with ExecutionStore.open(tmp_path) as store:
        assert store.get_or_make({"a": 1}, lambda: [ONE]) == (ONE,)
        assert store.made == 1
    assert f"offramp: decoded again: {path.name} is damaged" in capsys.readouterr().err
    assert path.read_bytes() == whole


def test_a_file_under_another_name_answers_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExecutionStore.open(tmp_path) as store:
        store.get_or_make({"a": 1}, lambda: [ONE])
        store.get_or_make({"a": 2}, lambda: [replace(ONE, document="e")])
    one, other = sorted(tmp_path.glob("*.json"), key=lambda path: '"a": 2' in path.read_text())
    one.write_bytes(other.read_bytes())
    with ExecutionStore.open(tmp_path) as store:
        assert store.get_or_make({"a": 1}, lambda: [ONE]) == (ONE,)
    assert "it answers another request" in capsys.readouterr().err


def test_a_folder_belongs_to_one_process_and_is_swept(tmp_path: Path) -> None:
    leftover = tmp_path / ".writing-1-x.json"
    leftover.write_text("half")
    with ExecutionStore.open(tmp_path):
        assert not leftover.exists()
        with pytest.raises(InputError, match="another offramp process"), ExecutionStore.open(tmp_path):
            pass


def test_all_that_changes_an_execution_is_in_its_request(monkeypatch: pytest.MonkeyPatch) -> None:
    model, openings = agreeable_llama(), openings_of(5, 5)

    def request(**changed: Any) -> str:
        given = {
            "model": model,
            "options": options_of(),
            "openings": openings,
            "rows": 2,
        }
        made = request_of(**(given | changed))
        assert json.loads(json.dumps(made)) == made
        return json.dumps(made)

    identity = replace(model.identity, transforms=("int8",))
    others = [
        request(model=replace(model, identity=identity)),
        request(model=replace(model, dtype="bfloat16")),
        request(options=options_of("static:exit=1")),
        request(options=options_of(kv="recompute")),
        request(options=options_of(draft_length=2)),
        request(openings=openings[:1]),
        request(openings=openings[::-1]),
        request(openings=[*openings[:1], Opening("d1", (3, 3, 3, 3, 3), True)]),
        request(options=options_of(new_tokens=NEW + 1)),
        request(rows=1),
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    others.append(request())
    torch.set_num_threads(threads)
    monkeypatch.setattr(module, "_code", lambda: "other code")
    others.append(request())
    monkeypatch.undo()
    monkeypatch.setattr(module, "library_versions", lambda transforms: {"torch": "0"})
    others.append(request())
    monkeypatch.undo()
    assert request() == request()
    assert len({request(), *others}) == len(others) + 1


def test_heads_are_in_the_request(monkeypatch: pytest.MonkeyPatch) -> None:
    class Heads:
        fingerprint = "h"

    options = options_of()
    object.__setattr__(options, "heads", Heads())
    made = request_of(agreeable_llama(), options, openings_of(5), rows=1)
    assert made["heads"] == "h"


SCRIPT = """
import sys, time
from pathlib import Path
sys.path[:0] = sys.argv[2].split(":")
from execution_cases import agreeable_llama, openings_of, options_of
from offramp.decoding.execution.execution import execute
from offramp.decoding.execution.execution import ExecutionStore, request_of
from offramp.decoding.quality.judging import Judge
model, options, openings = agreeable_llama(), options_of(new_tokens=6), openings_of(*(5,) * 40)
judge = Judge(model)
with ExecutionStore.open(Path(sys.argv[1])) as store:
    for start in range(0, 40, 4):
        some = openings[start : start + 4]
        request = request_of(model, options, some, rows=4)
        store.get_or_make(request, lambda: execute(model, some, options, judge, rows=4))
        print(start, flush=True)
        time.sleep(0.05)
"""


@pytest.mark.slow
def test_a_kill_costs_nothing_but_the_group_at_hand(tmp_path: Path) -> None:
    folder = tmp_path / "executions"
    command = [sys.executable, "-c", SCRIPT, str(folder), ":".join(sys.path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    for _ in range(3):
        process.stdout.readline()
    time.sleep(0.06)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    kept = {path.name: path.read_bytes() for path in folder.glob("[!.]*.json")}
    assert 3 <= len(kept) < 10
    model, options, openings = agreeable_llama(), options_of(POLICY, new_tokens=NEW), openings_of(*(5,) * 40)
    judge = Judge(model)

    def run(store: ExecutionStore) -> list[Execution]:
        found: list[Execution] = []
        for start in range(0, 40, 4):
            some = openings[start : start + 4]
            request = request_of(model, options, some, rows=4)
            make = lambda some=some: execute(model, some, options, judge, rows=4)  # noqa: E731
            found += store.get_or_make(request, make)
        return found

    with ExecutionStore.open(folder) as store:
        resumed = run(store)
        assert store.made == 40 - 4 * len(kept)
    with ExecutionStore.open(None) as fresh:
        assert run(fresh) == resumed
    # What the killed process had kept is what this one would have made.
    for name, content in kept.items():
        assert (folder / name).read_bytes() == content
