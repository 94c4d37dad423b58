"""Hidden states in memory and in a file, and layer outputs of unusual shape."""

from __future__ import annotations

import errno
import os
from typing import Any

import numpy as np
import pytest
import torch
from tracing_models import llama, tiny_llama, tiny_model, workload_of

from offramp.errors import OfframpError
from offramp.heads.output_head import StateShape
from offramp.tracing import states as states_module
from offramp.tracing.facts import FACTS
from offramp.tracing.states import FileStore, MemoryStore, open_store
from offramp.tracing.tracer import trace


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_two_stores_hold_the_same(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    states = torch.randn(3, 11, 5).to(dtype)
    stores = [MemoryStore(3, 11, 5, dtype), FileStore(3, 11, 5, dtype)]
    for store in stores:
        for index in (2, 0, 1):
            store.write(index, 4, states[index, 4:])
            store.write(index, 0, states[index, :4])
        for index in range(3):
            assert torch.equal(store.read(index, slice(0, 11)), states[index])
            assert torch.equal(store.read(index, slice(3, 7)), states[index, 3:7])
            assert store.read(index, slice(3, 7)).dtype == dtype
        store.close()


def test_a_file_takes_rows_that_are_a_view() -> None:
    store = FileStore(1, 4, 3, torch.float32)
    whole = torch.arange(24.0).view(4, 6)
    store.write(0, 0, whole[:, ::2])
    assert torch.equal(store.read(0, slice(0, 4)), whole[:, ::2])
    store.close()


def test_the_store_follows_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states_module, "MEMORY_BUDGET", 2 * 3 * 4 * 4)
    assert isinstance(open_store(2, 3, 4, torch.float32), MemoryStore)
    assert isinstance(open_store(2, 3, 5, torch.float32), FileStore)


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[FileStore]:
    """States are kept in these files, however few they are."""
    found: list[FileStore] = []

    def counted(*arguments: Any) -> FileStore:
        found.append(FileStore(*arguments))
        return found[-1]

    monkeypatch.setattr("offramp.tracing.measurement.open_store", counted)
    return found


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_context_beyond_the_budget_gives_the_same_facts(
    dtype: str, files: list[FileStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(llama(), dtype=dtype, head_scale=3.0)
    work = workload_of(lengths=(90, 40, 40))
    with monkeypatch.context() as patch:
        patch.setattr("offramp.tracing.measurement.open_store", open_store)
        kept = trace(model, work, tokens=500, context=96, progress=False)
    assert not files
    in_file = trace(model, work, tokens=500, context=96, progress=False)
    assert files
    assert all(store._file.closed for store in files)
    for fact in FACTS:
        assert np.array_equal(kept.fact(fact.name), in_file.fact(fact.name)), fact.name


def test_the_file_is_closed_when_measuring_fails(
    files: list[FileStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FileStore, "read", lambda *arguments: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trace(tiny_llama(), workload_of(lengths=(9,)), tokens=5, context=9, progress=False)
    assert [store._file.closed for store in files] == [True]


def test_a_full_disk_is_told_before_anything_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OfframpError, match=r"the disk is full: 2,400 bytes of hidden states") as caught:
        FileStore(2, 10, 30, torch.float32)
    assert "TMPDIR" in caught.value.fix


@pytest.mark.parametrize(
    ("shape", "axis"), [((1, 7, 5), -2), ((3, 1, 7, 5), -2), ((1, 7, 2, 5), -3), ((7, 1, 5), -3)]
)
def test_rows_of_an_output_can_be_put_back(shape: tuple[int, ...], axis: int) -> None:
    hidden = torch.randn(*shape)
    state_shape = StateShape.of(hidden, axis)
    rows = state_shape.rows(hidden)
    assert rows.shape == (1, 7, hidden.numel() // 7)
    assert state_shape.features == hidden.numel() // 7
    assert torch.equal(state_shape.restore(rows[0]), hidden)
    some = hidden.narrow(axis, 2, 3)
    assert torch.equal(state_shape.restore(rows[0, 2:5]), some)
