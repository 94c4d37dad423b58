"""Reading layers from weight files: how much is in memory, reading ahead, and errors on the way."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from streaming_cases import driven_outputs, edit_tensors, layers_in_turn, shards, two_documents, write_family
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from offramp.errors import ModelError
from offramp.models import streaming as shards_module
from offramp.models.checkpoint import read_headers
from offramp.models.model import Model
from offramp.models.skeleton import build_skeleton
from offramp.models.source import ModelFiles, find_source
from offramp.models.streaming import load_streamed, read_weights
from offramp.models.weight_map import map_weights

# Of one layer of the small llama, the tensors of this shape: gate and up.
MARKED = (96, 64)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> ModelFiles:
    return write_family(tmp_path_factory.mktemp("llama"), "llama")


@pytest.fixture
def model(source: ModelFiles) -> Model:
    return load_streamed(source, dtype="float32")


def marked_in_memory() -> int:
    """Distinct pieces of memory that tensors of the marked shape hold."""
    tensors = [item for item in gc.get_objects() if type(item) in (Tensor, nn.Parameter)]
    return len({item.data_ptr() for item in tensors if item.shape == MARKED and not item.is_meta})


class WatchedReading:
    """`read_weights`, with a signal at the end of each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float = 0.0) -> None:
        self.finished = threading.Event()
        self.seconds = seconds
        self.reads = 0
        self._read = shards_module.read_weights
        monkeypatch.setattr(shards_module, "read_weights", self)

    def __call__(self, hf: Any, steps: Sequence[Any], name: str) -> dict[str, Tensor]:
        time.sleep(self.seconds)
        weights = self._read(hf, steps, name)
        self.reads += 1
        self.finished.set()
        return weights


def test_two_layers_are_in_memory_at_most(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model.streamed is not None
    watched = WatchedReading(monkeypatch)
    before = marked_in_memory()
    for index in range(2):
        with model.streamed.layer(index, following=index + 1):
            assert watched.finished.wait(10)
            while watched.reads < index + 2:
                time.sleep(0.001)
            assert marked_in_memory() - before == 4
        assert marked_in_memory() - before == 2
    # A layer read ahead that is not wanted after all goes before another is read.
    with model.streamed.layer(0):
        assert marked_in_memory() - before == 2
    assert marked_in_memory() == before


def test_the_next_layer_is_read_while_one_is_in_use(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    assert model.streamed is not None
    waited, read = model.streamed.waited_seconds, model.streamed.read_seconds
    WatchedReading(monkeypatch, seconds=0.05)
    for _ in layers_in_turn(model):
        time.sleep(0.15)
    read = model.streamed.read_seconds - read
    assert read >= 4 * 0.05
    assert 0.05 <= model.streamed.waited_seconds - waited < read / 2


def test_weights_are_dropped_whatever_happens(model: Model) -> None:
    assert model.streamed is not None
    with pytest.raises(KeyboardInterrupt), model.streamed.layer(1, following=2):
        raise KeyboardInterrupt
    assert all(weight.is_meta for layer in model.stack.layers for weight in layer.parameters())
    ids = two_documents(model.hf)
    assert torch.isfinite(driven_outputs(model, ids)[-1]).all()


class LiveMemory(TorchDispatchMode):
    """The most bytes at a time of tensors that operations made, mapped files left out."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__()
        self.peak = 0
        self._made: list[weakref.ref[Tensor]] = []
        self._mapped: set[int] = set()
        read = shards_module.ShardReader.read

        def noted(reader: shards_module.ShardReader, stored: Any) -> Tensor:
            tensor = read(reader, stored)
            self._mapped.add(tensor.untyped_storage().data_ptr())
            return tensor

        monkeypatch.setattr(shards_module.ShardReader, "read", noted)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = made if isinstance(made, (list, tuple)) else [made]
        self._made += [weakref.ref(tensor) for tensor in tensors if isinstance(tensor, Tensor)]
        alive = [tensor for made_one in self._made if (tensor := made_one()) is not None]
        storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage() for tensor in alive}
        live = sum(storage.nbytes() for place, storage in storages.items() if place not in self._mapped)
        self.peak = max(self.peak, live)
        return made


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_reading_a_layer_needs_what_was_foretold(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    skeleton = build_skeleton(write_family(tmp_path, family), dtype="float32")
    weight_map = map_weights(skeleton, read_headers(tmp_path))
    with LiveMemory(monkeypatch) as memory:
        weights = read_weights(skeleton.hf, weight_map.layers[1], "test")
    assert sum(weight.nbytes for weight in weights.values()) == weight_map.layer_bytes[1]
    assert weight_map.layer_bytes[1] <= memory.peak <= 1.01 * weight_map.reading_bytes[1]
    # Merging the first two thirds of the experts takes their size again.
    assert weight_map.reading_bytes[1] < 1.4 * weight_map.layer_bytes[1]


def poison(layer: int | None, value: float) -> Any:
    def edit(tensors: dict[str, Tensor]) -> None:
        where = "model.norm" if layer is None else f"layers.{layer}.mlp.down_proj"
        for name in [name for name in tensors if where in name]:
            tensors[name].view(-1)[5] = value

    return edit


def test_a_weight_that_is_not_finite_is_refused_when_its_layer_is_read(tmp_path: Path) -> None:
    write_family(tmp_path, "llama")
    edit_tensors(tmp_path, poison(2, float("nan")))
    model = load_streamed(find_source(str(tmp_path)), dtype="float32")
    assert model.streamed is not None
    with model.streamed.layer(1, following=2):
        pass
    with pytest.raises(ModelError, match=r"model\.layers\.2\.mlp\.down_proj\.weight holds NaN"):
        model.streamed.layer(2).__enter__()


def test_a_resident_weight_that_is_not_finite_is_refused_at_once(tmp_path: Path) -> None:
    write_family(tmp_path, "llama")
    edit_tensors(tmp_path, poison(None, float("inf")))
    with pytest.raises(ModelError, match=r"model\.norm\.weight holds NaN or infinite"):
        load_streamed(find_source(str(tmp_path)), dtype="float32")


def test_a_shard_that_is_gone_is_named_when_its_layer_is_wanted(tmp_path: Path) -> None:
    model = load_streamed(write_family(tmp_path, "llama"), dtype="float32")
    assert model.streamed is not None
    for path in shards(tmp_path):
        path.unlink()
    with pytest.raises(ModelError, match=r"cannot be read any more") as caught:
        model.streamed.layer(3).__enter__()
    assert ".safetensors" in caught.value.where


def test_files_are_closed_in_between(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same weights, whether a file is opened once for a layer or anew for every tensor."""
    assert model.source is not None
    folder = str(model.source.folder)
    ids = two_documents(model.hf)
    expected = driven_outputs(model, ids)
    monkeypatch.setattr(shards_module, "PIECE_BYTES", 0)
    closed: list[bool] = []
    close = shards_module.ShardReader.close
    maps = Path("/proc/self/maps")

    def watched(self: shards_module.ShardReader) -> None:
        close(self)
        closed.append(not maps.is_file() or folder not in maps.read_text())

    monkeypatch.setattr(shards_module.ShardReader, "close", watched)
    assert all(map(torch.equal, expected, driven_outputs(model, ids)))
    # Before each of a layer's nine tensors but the first, and after the last.
    assert closed == [True] * 4 * 9
