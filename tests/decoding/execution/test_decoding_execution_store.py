"""Executions on disk: read again, made again where damaged, and the same after a kill at any moment."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from execution_cases import agreeable_llama, openings_of, options_of

from offramp.decoding.execution import execution as module
from offramp.decoding.execution.execution import Execution, ExecutionStore, request_of
from offramp.decoding.openings import Opening
from offramp.errors import InputError

NEW = 6
ONE = Execution("d", (1, 2), (3, 4), (4, 2), (True, False), 6)
LIMITS = {"new_tokens": 3, "layers": 4, "vocabulary": 320}
ASKED, OTHER = ({"documents": [[name, [1, 2]]], **LIMITS} for name in ("d", "e"))


def never() -> list[Execution]:
    raise AssertionError("it was kept before")


def test_what_was_made_is_never_made_again(tmp_path: Path) -> None:
    folder = tmp_path / "executions"
    with ExecutionStore.open(folder) as store:
        assert store.get_or_make(ASKED, lambda: [ONE]) == (ONE,)
        assert store.get_or_make(ASKED, never) == (ONE,)
        assert store.get_or_make({"documents": [], **LIMITS}, list) == ()
        before = {
            "documents": ASKED["documents"],
            "new_tokens": 3,
        }  # when requests said neither of the model's
        assert store.get_or_make(before, lambda: [ONE]) == (ONE,)
        assert store.made == 2
    with ExecutionStore.open(folder) as store:
        assert store.get_or_make(ASKED, never) == (ONE,)
        assert store.get_or_make(before, never) == (ONE,)
        assert store.made == 0
    with ExecutionStore.open(None) as store:
        assert store.get_or_make(ASKED, lambda: [ONE]) == (ONE,)
        assert store.get_or_make(ASKED, never) == (ONE,)


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
        store.get_or_make(ASKED, lambda: [ONE])
    path = next(tmp_path.glob("*.json"))
    whole = path.read_bytes()
    damage(path)
    with ExecutionStore.open(tmp_path) as store:
        assert store.get_or_make(ASKED, lambda: [ONE]) == (ONE,)
        assert store.made == 1
    assert f"offramp: decoded again: {path.name} is damaged" in capsys.readouterr().err
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"agrees": ()}, "other choices"),
        ({"agrees": (True,) * 500}, "other choices"),
        ({"answer": (), "exits": (), "agrees": ()}, "no answer"),
        ({"exits": (4, 5)}, "deeper than 4"),
        ({"exits": (99, 99)}, "deeper than 4"),
        ({"answer": (3, 320)}, "beyond the 320"),
        ({"answer": (3,) * 4, "exits": (4,) * 4, "agrees": (True,) * 4}, "4 tokens, and 3 were asked for"),
        ({"exits": (4, -5)}, r"exits"),
        ({"layers_executed": -60}, "layers_executed"),
        ({"document": "nobody"}, "other documents"),
        ({"prompt": (7,)}, "other documents"),
    ],
)
def test_impossible_executions_are_made_again(
    change: dict[str, Any], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExecutionStore.open(tmp_path) as store:
        store.get_or_make(ASKED, lambda: [replace(ONE, **change)])
    with ExecutionStore.open(tmp_path) as store:
        assert store.get_or_make(ASKED, lambda: [ONE]) == (ONE,)
    assert words in capsys.readouterr().err


def test_a_file_under_another_name_answers_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ExecutionStore.open(tmp_path) as store:
        store.get_or_make(ASKED, lambda: [ONE])
        store.get_or_make(OTHER, lambda: [replace(ONE, document="e")])
    one, other = sorted(tmp_path.glob("*.json"), key=lambda path: '"e"' in path.read_text())
    one.write_bytes(other.read_bytes())
    with ExecutionStore.open(tmp_path) as store:
        assert store.get_or_make(ASKED, lambda: [ONE]) == (ONE,)
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
    with_heads = options_of()
    object.__setattr__(with_heads, "heads", SimpleNamespace(fingerprint="h"))
    others = [
        request(model=model.with_identity(identity)),
        request(model=replace(model, dtype="bfloat16")),
        request(options=options_of("static:exit=1")),
        request(options=options_of(kv="recompute")),
        request(options=options_of(draft_length=2)),
        request(options=with_heads),
        request(openings=openings[:1]),
        request(openings=openings[::-1]),
        request(openings=[*openings[:1], Opening("d1", (3, 3, 3, 3, 3), True)]),
        request(options=options_of(new_tokens=NEW + 1)),
        request(rows=1),
        request(reference=model),
        request(reference=model.with_identity(identity)),
    ]
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    others.append(request())
    torch.set_num_threads(threads)
    monkeypatch.setattr(module, "code_of", lambda *asked: "other code")
    others.append(request())
    monkeypatch.undo()
    monkeypatch.setattr(module, "library_versions", lambda *asked: {"torch": "0"})
    others.append(request())
    monkeypatch.undo()
    assert request() == request()
    assert len({request(), *others}) == len(others) + 1
