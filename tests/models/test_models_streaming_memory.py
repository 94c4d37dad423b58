"""How much memory a model's weights need, read from headers, and how much there is."""

from __future__ import annotations

import itertools
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from streaming_cases import write_family

from offramp.errors import ModelError
from offramp.models import devices, streaming
from offramp.models.loading import load_source
from offramp.models.process import machine_memory
from offramp.models.streaming import (
    MemoryNeed,
    PartialModel,
    ShardReader,
    load_streamed,
    memory_need,
    needed_memory,
    would_not_fit,
)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", "float32"), ("gemma2", "bfloat16"), ("mixtral", "float32"), ("jamba", "bfloat16")],
)
def test_the_headers_tell_what_the_weights_take(
    family: str, dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_family(tmp_path, family)
    whole = load_source(source, dtype=dtype)
    layers = [sum(tensor.nbytes for tensor in layer.state_dict().values()) for layer in whole.stack.layers]
    total = sum(parameter.nbytes for parameter in whole.hf.parameters())
    monkeypatch.setattr(ShardReader, "read", None)
    need = needed_memory(source, dtype)
    assert need.whole_bytes == total
    assert need.largest_layer_bytes == max(layers)
    assert need.resident_bytes == total - sum(layers)
    pair = max(map(sum, itertools.pairwise(layers)))
    assert need.resident_bytes + pair <= need.streaming_bytes
    if family in ("llama", "gemma2"):  # no pieces to merge, two layers looked at
        assert need.streaming_bytes == need.resident_bytes + pair


@pytest.mark.parametrize(
    ("real", "resident_spare", "bytes"),
    [
        ((0,), 1, 5 + 20 + 37),  # the second layer in use while the third is read
        ((0, 1, 2), 1, 5 + 10 + 20 + 30 + 7),  # all of them looked at
        ((0,), 90, 5 + 90),  # what stays is put together
    ],
)
def test_the_most_that_is_held_at_a_time(real: tuple[int, ...], resident_spare: int, bytes: int) -> None:
    resident = [
        SimpleNamespace(result_bytes=3, spare_bytes=resident_spare),
        SimpleNamespace(result_bytes=2, spare_bytes=0),
    ]
    weights: Any = SimpleNamespace(layer_bytes=(10, 20, 30), reading_bytes=(15, 26, 37), resident=resident)
    need = memory_need(weights, PartialModel((0, 0, 0), real))
    assert need == MemoryNeed(65, 30, 5, bytes)


def test_a_budget_too_small_for_a_layer_says_what_is_needed(tmp_path: Path) -> None:
    source = write_family(tmp_path, "llama")
    need = needed_memory(source, "float32").streaming_bytes
    model = load_streamed(source, dtype="float32", memory_bytes=need)
    assert model.streamed is not None
    assert model.streamed.resident_bytes + 2 * max(model.streamed.layer_bytes) == need
    with pytest.raises(ModelError, match=f"{need:,}") as caught:
        load_streamed(source, dtype="float32", memory_bytes=need - 1)
    assert f"{need}B" in caught.value.fix  # as --memory takes it


def test_a_model_larger_than_what_is_available(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = write_family(tmp_path, "llama")
    whole = needed_memory(source, "float32").whole_bytes
    assert not would_not_fit(source, "float32")
    monkeypatch.setattr(streaming, "available_memory", lambda: whole)
    assert would_not_fit(source, "float32")
    assert not would_not_fit(source, "bfloat16")
    monkeypatch.setattr(streaming, "available_memory", lambda: int(whole * 1.11))
    assert not would_not_fit(source, "float32")


def write_group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


def test_what_control_groups_leave_counts(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("0::/outer/inner\n")
    groups = tmp_path / "groups"
    outer = groups / "outer"
    write_group(outer, memory__max="9000", memory__current="5000", memory__stat="anon 1\ninactive_file 500")
    write_group(outer / "inner", memory__max="max\n", memory__current="10\n", memory__stat="")
    assert streaming.available_memory(groups, own) == 4500
    write_group(outer / "inner", memory__max="1000", memory__current="400", memory__stat="inactive_file 100")
    assert streaming.available_memory(groups, own) == 700
    write_group(outer / "inner", memory__current="2000")
    assert streaming.available_memory(groups, own) == 0
    # What there is for everything that runs in them is the lowest limit.
    assert machine_memory(groups, own) == 1000
    write_group(outer / "inner", memory__max="max")
    assert machine_memory(groups, own) == 9000


def test_what_is_free_on_the_processor_is_what_this_process_may_use(monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container of 4 GB on a machine of 256 GB batches are sized by the 4."""
    monkeypatch.setattr(devices, "available_memory", lambda: 4_000_000_000)
    assert devices.free_bytes(torch.device("cpu")) == 4_000_000_000


def test_control_groups_of_the_first_version(tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.write_text("12:cpu,cpuacct:/job\n4:memory:/job\n")
    write_group(
        tmp_path / "memory" / "job",
        memory__limit_in_bytes="5000",
        memory__usage_in_bytes="1500",
        memory__stat="inactive_file 3\ntotal_inactive_file 50",
    )
    assert streaming.available_memory(tmp_path, own) == 3550
    assert machine_memory(tmp_path, own) == 5000


def test_without_control_groups_the_machine_counts(tmp_path: Path) -> None:
    found = streaming.available_memory(tmp_path, tmp_path / "none")
    assert found == pytest.approx(psutil.virtual_memory().available, rel=0.5)
    assert machine_memory(tmp_path, tmp_path / "none") == psutil.virtual_memory().total
