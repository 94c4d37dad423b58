"""States on disk against states collected by hand; what is damaged, of another training, or has no room."""

from __future__ import annotations

import errno
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fitting_cases import states_by_hand, texts
from tracing_models import NumberTokenizer, llama, tiny_llama, tiny_model

from offramp.errors import DamagedFileError, DiskFullError, InputError
from offramp.kit.sealed_tensors import StreamedBytes
from offramp.models.model import Model
from offramp.tracing.fitting.fitting_documents import FittingRows, plan_rows
from offramp.training import states as module
from offramp.training.folder import FIT, HELD_OUT
from offramp.training.states import StatesPlan, read_states, require_enough, require_planned, write_states

Usage = namedtuple("Usage", "total used free")


TOKENS = 300


def planned(model: Model, tokens: int = TOKENS) -> FittingRows:
    workload = texts(20)
    return plan_rows(model, [(workload, workload.documents)], tokens, context=None, shown=False)


def written(folder: Path, model: Model, rows: FittingRows, key: str = "key") -> module.CachedStates:
    return write_states(
        model, StatesPlan.of(model, rows, (1, 2), TOKENS), folder / "states", key, lambda count: None
    )


@pytest.mark.parametrize("bos", [None, 1])
def test_states_are_those_of_the_layers(tmp_path: Path, bos: int | None) -> None:
    """Position 0 is no row; neither is what is put in front of a text, which may stand there."""
    model = tiny_model(llama(), tokenizer=NumberTokenizer(bos=bos))
    rows = planned(model)
    found = written(tmp_path, model, rows)
    by_hand, document = states_by_hand(model, rows.contexts)
    position = np.concatenate([np.arange(one.first_row, len(one.ids)) for one in rows.contexts])
    fit = (position > 0) & ~rows.held_out[document]
    held_out = (position > 0) & rows.held_out[document]
    assert found.layers == (1, 2, 3)
    assert found.exits == (1, 2)
    assert found.fit.dtype == torch.bfloat16
    assert found.held_out.dtype == torch.float32
    expected = torch.from_numpy(by_hand.transpose(1, 0, 2))
    torch.testing.assert_close(found.held_out, expected[held_out].float())
    torch.testing.assert_close(found.fit.float(), expected[fit].float(), rtol=2**-8, atol=1e-6)
    assert StatesPlan.of(model, rows, (1, 2), TOKENS).fit_rows == fit.sum() == len(found.fit)
    size = sum((tmp_path / "states" / name).stat().st_size for name in (FIT, HELD_OUT))
    assert size == StatesPlan.of(model, rows, (1, 2), TOKENS).bytes


def test_of_many_held_out_rows_some_are_kept_evenly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny_llama(), planned(tiny_llama())
    whole = written(tmp_path / "all", model, rows).held_out
    monkeypatch.setattr(module, "HELD_OUT_ROWS", 30)
    stride = -(-len(whole) // 30)
    assert stride > 1
    torch.testing.assert_close(written(tmp_path / "some", model, rows).held_out, whole[::stride])


def test_they_are_read_back_under_their_key_alone(tmp_path: Path) -> None:
    model = tiny_llama()
    found = written(tmp_path, model, planned(model))
    again = read_states(tmp_path / "states", "key")
    assert again is not None
    assert torch.equal(again.fit, found.fit)
    assert torch.equal(again.held_out, found.held_out)
    assert read_states(tmp_path / "states", "another key") is None
    assert read_states(tmp_path / "nowhere", "key") is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda found: replace(found, layers=(9, 9, 9)), "of other layers"),
        (lambda found: replace(found, fit=found.fit.to(torch.float16)), "sizes or types"),
        (lambda found: replace(found, fit=found.fit[:, :, :4]), "sizes or types"),
        (lambda found: replace(found, fit=found.fit[:0]), "it has 0 rows"),
        (lambda found: replace(found, held_out=found.held_out.repeat(2, 1, 1)), "rows, and"),
        (lambda found: replace(found, held_out=found.held_out * float("nan")), "not finite"),
    ],
)
def test_states_that_are_not_of_the_plan_are_refused(tmp_path: Path, change: Any, words: str) -> None:
    model = tiny_llama()
    plan = StatesPlan.of(model, planned(model), (1, 2), TOKENS)
    found = written(tmp_path, model, plan.rows)
    require_planned(found, plan, tmp_path)
    with pytest.raises(DamagedFileError, match=words):
        require_planned(change(found), plan, tmp_path)


@pytest.mark.parametrize("place", [5, 300, -1])
def test_a_changed_byte_is_noticed(tmp_path: Path, place: int) -> None:
    model = tiny_llama()
    written(tmp_path, model, planned(model))
    path = tmp_path / "states" / FIT
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)
    with pytest.raises(DamagedFileError, match=r"fit\.safetensors is damaged"):
        read_states(tmp_path / "states", "key")


@pytest.mark.parametrize(
    ("was", "now"),
    [
        ('"U8"', '"I8"'),
        (r"\"float32\"", r"\"float16\""),
        (r"\"seconds\":", r"\"seconds\":1"),
        (r"\"layers\":[1", r"\"layers\":[2"),
    ],
)
def test_a_changed_header_is_noticed(tmp_path: Path, was: str, now: str) -> None:
    model = tiny_llama()
    written(tmp_path, model, planned(model))
    path = tmp_path / "states" / HELD_OUT
    header, numbers = path.read_bytes()[8:4096].decode().rstrip(), path.read_bytes()[4096:]
    assert was in header
    changed = header.replace(was, now).encode().ljust(4088)
    path.write_bytes((4088).to_bytes(8, "little") + changed + numbers)
    with pytest.raises(DamagedFileError, match=r"held_out\.safetensors is damaged"):
        read_states(tmp_path / "states", "key")


def test_no_room_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_llama()
    plan = StatesPlan.of(model, planned(model), (1, 2), TOKENS)
    plan.require_room(tmp_path / "not there")
    monkeypatch.setattr("shutil.disk_usage", lambda folder: Usage(10**9, 10**9, plan.bytes - 1))
    with pytest.raises(DiskFullError, match=r"300 tokens at 3 layers take .* are free"):
        plan.require_room(tmp_path / "not there")
    assert not any(tmp_path.iterdir())


def test_a_disk_that_becomes_full_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, rows = tiny_llama(), planned(tiny_llama())
    add = StreamedBytes.add

    def full(file: StreamedBytes[module.States], rows: Any) -> None:
        if file.rows:
            raise OSError(errno.ENOSPC, "No space left on device")
        add(file, rows)

    monkeypatch.setattr(StreamedBytes, "add", full)
    monkeypatch.setattr("offramp.tracing.fitting.fitting_inputs.FORWARD_TOKENS", 60)
    with pytest.raises(DiskFullError, match="the disk is full"):
        written(tmp_path, model, rows)
    assert not any(tmp_path.iterdir())


def test_too_little_text_says_what_there_is() -> None:
    model = tiny_llama()
    plan = StatesPlan.of(model, planned(model, tokens=60), (1,), 60)
    require_enough(plan.fit_rows, plan.fit_rows)
    with pytest.raises(InputError, match=f"there are {plan.fit_rows} tokens to train on") as error:
        require_enough(plan.fit_rows, plan.fit_rows + 1)
    assert "offramp heads fit" in error.value.fix
