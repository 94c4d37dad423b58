"""`train_exits` of the kind executed: what it leaves in the heads, the same again, killed, refused."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fitting_cases import texts
from map_cases import random_maps
from tracing_models import tiny_llama
from training_cases import answering_takes, arrays, assert_same

import offramp
from offramp.errors import InputError
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import read_heads, write_heads
from offramp.models.model import Model
from offramp.tracing.fitting.fitting_documents import Seen, seen_by_all
from offramp.tracing.fitting.maps import parse_map_exits
from offramp.training import loop
from offramp.training.executed_maps import ExecutedMaps, start_of
from offramp.training.loop import Steps
from offramp.training.record import Spent, spent_before, spent_on
from offramp.training.train import TrainedExits, train_exits

QUICK: dict[str, Any] = {"steps": 12, "tokens": 1500, "precision": "float32", "progress": False}


@functools.cache
def fitted() -> ExitHeads:
    """Heads with a lens, classifiers and maps; the maps made so bad that there is something to learn."""
    found = offramp.fit_heads(tiny_llama(), texts(120), tokens=1000, exits=[1], kv_maps=[1], progress=False)
    assert found.kv_maps is not None
    bad = random_maps(tiny_llama().shape.hidden_size, tiny_llama().layers, [1], scale=0.8).maps
    return replace(found, kv_maps=replace(found.kv_maps, maps=bad))


def trained(model: Model | None = None, **options: Any) -> TrainedExits:
    return train_exits(
        model or tiny_llama(), texts(120), kind="executed", **{"start": fitted(), **QUICK, **options}
    )


def _same(one: np.ndarray, other: np.ndarray) -> bool:
    return one.shape == other.shape and np.array_equal(one, other, equal_nan=one.dtype.kind == "f")


def test_only_the_maps_are_others() -> None:
    found = trained()
    before, after = fitted(), found.heads
    now = arrays(found)
    changed = {name for name, one in before.arrays().items() if not _same(one, now[name])}
    assert {name for name in changed if "texts" not in name} == {
        "kv_maps.1.bias",
        "kv_maps.1.inward",
        "kv_maps.1.outward",
    }
    assert after.reading_fingerprint == before.reading_fingerprint
    assert after.kv_maps is not None
    assert before.kv_maps is not None
    told = after.kv_maps.provenance["trained"]
    assert (told["kind"], told["steps_taken"], told["leave"]) == ("executed", 12, 0.3)
    (seen,) = after.seen_documents.values()
    assert set(before.seen_documents[next(iter(before.seen_documents))]) <= set(seen)
    assert after.kv_maps.texts is not None
    assert len(after.kv_maps.texts) == sum(map(len, after.kv_maps.documents.values()))
    record = found.record
    assert record.trained[0].loss < record.before[0].loss
    assert record.history[0].exits == record.before
    assert record.trained[0].leaving[0] == pytest.approx(0.3, abs=0.1)
    assert record.request.start == before.fingerprint


def test_writing_the_text_is_part_of_what_training_takes(monkeypatch: pytest.MonkeyPatch) -> None:
    answering_takes(monkeypatch, 2000.0)
    answers = replace(texts(120), mode="generation")
    taken = [
        train_exits(
            tiny_llama(), work, kind="executed", **{**QUICK, "start": fitted(), "steps": 1}
        ).record.seconds.states
        for work in (answers, texts(120))
    ]
    assert taken[0] > 1000.0 > taken[1] == 0.0


@pytest.mark.parametrize("leave", [0.3, 0.02])  # of so few there are steps in which none leaves
def test_stopped_on_the_way_it_ends_in_the_same_maps(
    leave: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = trained(leave=leave)
    step, taken = Steps.step, []

    def ending(loop: Any, at: int) -> bool:
        if len(taken) == 7:
            raise KeyboardInterrupt
        taken.append(at)
        return step(loop, at)

    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(loop, "WRITING_SHARE", 1e9)
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "step", ending)
        with pytest.raises(KeyboardInterrupt):
            trained(output=tmp_path, leave=leave)
    with monkeypatch.context() as patch:
        patch.setattr(Steps, "step", lambda loop, at: taken.append(at) or step(loop, at))
        gone_on = trained(output=tmp_path, leave=leave)
    assert taken == list(range(whole.record.steps))
    assert_same(gone_on, whole)
    assert read_heads(tmp_path).fingerprint == whole.heads.fingerprint


def test_a_step_in_which_every_token_leaves_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    run, calls = ExecutedMaps.run, []

    def leaving(maps: ExecutedMaps, changes: Any, seen: Any) -> Any:
        hidden, stays = run(maps, changes, seen)
        calls.append(torch.is_grad_enabled())
        return hidden, stays & (not calls[-1] or sum(calls) != 3)

    monkeypatch.setattr(ExecutedMaps, "run", leaving)
    record = trained(steps=5).record
    assert sum(calls) == 5
    assert (record.steps, record.stopped) == (5, "the steps are done")


def test_the_maps_are_taken_by_a_rerun(tmp_path: Path) -> None:
    write_heads(fitted(), tmp_path / "start.safetensors")
    found = trained(start=tmp_path / "start.safetensors", output=tmp_path / "out")
    trace = offramp.trace(
        tiny_llama(), texts(120), tokens=300, exits=[1], heads=tmp_path / "out", progress=False
    )
    policy = "threshold:signal=correctness,value=0.3,exits=1"
    result = offramp.rerun(tiny_llama(), trace, policy, "mapped", heads=tmp_path / "out")
    assert result.how == "one parallel forward"
    assert found.heads.fingerprint == read_heads(tmp_path / "out").fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": None}, "no heads whose K,V maps"),
        ({"start": replace(fitted(), kv_maps=None)}, "no K,V maps to train"),
        ({"start": replace(fitted(), model={**fitted().model, "fingerprint": "0" * 64})}, "were fitted on"),
        ({"at": "2"}, "no K,V maps at exit 2"),
        ({"leave": 0.95}, "leave must be 0.9 at most"),
        ({"kind": "lens", "at": "1"}, "--from means nothing with --kind lens"),
        ({"kind": "lens", "at": "1", "start": None, "leave": 0.3}, "--leave means nothing with --kind lens"),
        ({"kv_maps": False}, "--no-kv-maps means nothing"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        train_exits(tiny_llama(), texts(120), **{"kind": "executed", "start": fitted(), **QUICK, **options})


def test_what_the_start_took_is_added_where_a_record_says_it(tmp_path: Path) -> None:
    """Of a start that sums alone made nothing, of one that steps made and whose record is gone no figure."""
    first = trained(steps=2, output=tmp_path / "first")
    assert first.record.earlier == Spent()
    again = trained(steps=2, start=tmp_path / "first", output=tmp_path / "again").record.earlier
    assert again is not None
    assert again == first.record.own
    assert again.seconds > 0
    third = trained(steps=2, start=tmp_path / "again" / "exits.safetensors").record
    assert third.earlier is not None
    assert third.earlier.seconds > again.seconds
    assert third.earlier.tokens == 2 * first.record.rows.tokens
    assert spent_on(third) == third.own + third.earlier
    (tmp_path / "first" / "training.json").unlink()
    assert spent_before(tiny_llama(), tmp_path / "first" / "exits.safetensors", first.heads) is None
    assert spent_on(replace(third, earlier=None)) is None


def test_where_a_training_starts_from_is_not_written_to(tmp_path: Path) -> None:
    write_heads(fitted(), tmp_path / "heads.safetensors")
    before = (tmp_path / "heads.safetensors").read_bytes()
    with pytest.raises(InputError, match="holds files that are not a training"):
        trained(start=tmp_path / "heads.safetensors", output=tmp_path, overwrite=True)
    assert (tmp_path / "heads.safetensors").read_bytes() == before


def test_documents_that_both_saw_count_once() -> None:
    sketches = [np.array([number], dtype=np.uint32) for number in range(5)]
    first = ({"w": ("a", "b")}, sketches[:2])
    second = ({"w": ("b", "c"), "v": ("d",)}, sketches[2:])
    ids, texts_seen = seen_by_all(first, second)
    assert list(ids.items()) == [("v", ("d",)), ("w", ("a", "b", "c"))]
    assert texts_seen is not None
    by_id = dict(zip([id for some in ids.values() for id in some], texts_seen, strict=True))
    assert [int(by_id[id][0]) for id in "abcd"] == [0, 1, 3, 4]
    assert seen_by_all(({"w": ("a",)}, None), second)[1] is None
    assert seen_by_all(second, ({"w": ("a",)}, None))[1] is None
    nothing: Seen = ({}, None)
    assert seen_by_all(nothing, second)[1] is not None, "of no document every text is known"


def test_maps_are_advised_at_an_exit_that_the_model_has() -> None:
    with pytest.raises(InputError, match="no heads whose K,V maps") as refused:
        start_of(tiny_llama(), None)
    exits = [int(exit) for exit in refused.value.fix.split("--kv-maps ")[1].split()[0].split(",")]
    assert parse_map_exits(exits, tiny_llama().layers) == tuple(exits)
