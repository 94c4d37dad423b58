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
from offramp.tracing.states import StateStore, fit_in_memory
from offramp.tracing.tracer import trace


@pytest.fixture
def mapped(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """States lie in files of so many bytes, however few they are."""
    sizes: list[int] = []
    map_file = states_module._mapped_file

    def counted(size: int) -> torch.Tensor:
        sizes.append(size)
        return map_file(size)

    monkeypatch.setattr(states_module, "MEMORY_BUDGET", 0)
    monkeypatch.setattr(states_module, "_mapped_file", counted)
    return sizes


@pytest.mark.parametrize("budget", [0, 1 << 20])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_written_is_read_again(
    dtype: torch.dtype, budget: int, mapped: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(states_module, "MEMORY_BUDGET", budget)
    torch.manual_seed(0)
    states = torch.randn(3, 11, 10).to(dtype)[:, :, ::2]  # rows are a view
    store = StateStore(3, 11, 5, dtype)
    assert mapped == ([] if budget else [3 * 11 * 5 * dtype.itemsize])
    for index in (2, 0, 1):
        store.write(index, 4, states[index, 4:])
        store.write(index, 0, states[index, :4])
    for index in range(3):
        assert torch.equal(store.read(index, slice(0, 11)), states[index])
        assert torch.equal(store.read(index, slice(3, 7)), states[index, 3:7])
        assert store.read(index, slice(3, 7)).dtype == dtype
    store.close()


def test_the_store_follows_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(states_module, "MEMORY_BUDGET", 2 * 3 * 4 * 4)
    cpu = torch.device("cpu")
    assert fit_in_memory(2 * 3 * 4 * 4, cpu)
    assert not fit_in_memory(2 * 3 * 4 * 4 + 1, cpu)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_context_beyond_the_budget_gives_the_same_facts(
    dtype: str, mapped: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(llama(), dtype=dtype, head_scale=3.0)
    work = workload_of(lengths=(90, 40, 40))
    in_file = trace(model, work, tokens=500, context=96, progress=False)
    assert mapped
    monkeypatch.setattr(states_module, "MEMORY_BUDGET", 1 << 30)
    kept = trace(model, work, tokens=500, context=96, progress=False)
    for fact in FACTS:
        assert np.array_equal(kept.fact(fact.name), in_file.fact(fact.name)), fact.name


def test_the_file_goes_when_measuring_fails(mapped: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[StateStore] = []
    close = StateStore.close
    monkeypatch.setattr(StateStore, "read", lambda *arguments: 1 / 0)
    monkeypatch.setattr(StateStore, "close", lambda store: closed.append(store) or close(store))
    with pytest.raises(ZeroDivisionError):
        trace(tiny_llama(), workload_of(lengths=(9,)), tokens=5, context=9, progress=False)
    assert len(closed) == len(mapped) == 1
    assert not hasattr(closed[0], "_states")


def test_a_full_disk_is_told_before_anything_is_measured(
    mapped: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(OfframpError, match=r"the disk is full: 2,400 bytes of hidden states") as caught:
        StateStore(2, 10, 30, torch.float32)
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
