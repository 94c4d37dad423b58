"""The layers of a model read from its weight files: one in use, the next one read meanwhile."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from offramp.errors import ModelError, refused_as
from offramp.models.checkpoint import StoredTensor
from offramp.models.skeleton import Skeleton, drop_weights, set_tensor
from offramp.models.tensors import check_tensor_finite
from offramp.models.weight_map import Assembly, WeightMap


class StreamedLayers(Protocol):
    """The layers of a model whose weights stay on disk.

    layer_bytes: of each layer's weights as they are loaded. resident_bytes: of what stays in memory all the
    time (embedding, final norm, output head).
    """

    layer_bytes: tuple[int, ...]
    resident_bytes: int

    @property
    def waited_seconds(self) -> float:
        """How long `layer` has waited for the disk so far."""

    @property
    def read_seconds(self) -> float:
        """How long reading took altogether, in the background or not."""

    def layer(self, index: int, following: int | None = None) -> AbstractContextManager[nn.Module]:
        """The layer with its weights, from 0; they are dropped at the end of the context.

        following: the layer that is read ahead meanwhile, None for none.
        """


# A file is mapped into memory while it is read; it is closed and opened again after this many bytes, because
# pages of a mapping count as memory in use.
PIECE_BYTES = 128 * 2**20

# Bytes of a cache line, and of the widest vector registers: torch's own memory begins at a multiple.
ALIGNMENT = 64


class ShardReader:
    """Weight files opened when something is read from them, and closed at the end of the context."""

    def __init__(self) -> None:
        self._open = contextlib.ExitStack()
        self._files: dict[Path, Any] = {}
        self._mapped = 0

    def __enter__(self) -> ShardReader:
        return self

    def __exit__(self, *error: Any) -> None:
        self.close()

    def close(self) -> None:
        """Close all files; they stay mapped as long as tensors of them are in use."""
        self._files.clear()
        self._mapped = 0
        self._open.close()

    def read(self, stored: StoredTensor) -> Tensor:
        """A stored tensor, mapped from the file: to be copied, not kept.

        Raises ModelError if the file cannot be read any more.
        """
        what, changed = f"the tensor {stored.name} cannot be read any more", (OSError, SafetensorError)
        fix = "the file was changed or removed meanwhile: put it back and start again"
        with refused_as(ModelError, what, *changed, where=str(stored.file), fix=fix):
            if self._mapped > PIECE_BYTES:
                self.close()
            if stored.file not in self._files:
                file = safe_open(stored.file, framework="pt", device="cpu")
                self._files[stored.file] = self._open.enter_context(file)
            tensor: Tensor = self._files[stored.file].get_tensor(stored.name)
        self._mapped += tensor.nbytes
        return tensor


def _copied(mapped: Tensor) -> Tensor:
    """A copy in memory of its own, as far from a boundary of `ALIGNMENT` bytes as the original.

    The last bits of a matrix product may depend on that, and `from_pretrained` uses weights where they lie in
    the file: so a streamed layer computes exactly what the same layer does in memory.
    """
    size = mapped.element_size()
    start = mapped.data_ptr() % ALIGNMENT // size
    memory = torch.empty(start + mapped.numel(), dtype=mapped.dtype, device="cpu")
    return memory[start:].view(mapped.shape).copy_(mapped)


def read_weights(hf: Any, steps: Sequence[Assembly], name: str) -> dict[str, Tensor]:
    """What some steps of loading make, by the names of the model, in memory of their own.

    name: of the model, for messages. Raises ModelError if a file cannot be read or a weight is not finite.
    """
    weights: dict[str, Tensor] = {}
    buffers = {key for key, _ in hf.named_buffers()}
    with ShardReader() as reader, torch.no_grad():
        for step in steps:
            made = _make(hf, step, reader)
            for key in made.keys() - buffers:
                check_tensor_finite(key, made[key], name)
            weights |= made
    return weights


def _make(hf: Any, step: Assembly, reader: ShardReader) -> dict[str, Tensor]:
    """What one step makes; afterwards nothing refers to the files any more."""
    mapped: set[int] = set()

    def read(stored: StoredTensor) -> Tensor:
        tensor = reader.read(stored)
        mapped.add(tensor.untyped_storage().data_ptr())
        return tensor

    # Where nothing is converted or merged, the result is the file's own memory.
    return {
        key: _copied(made) if made.untyped_storage().data_ptr() in mapped else made
        for key, made in step.make(hf, read).items()
    }


class ShardedLayers:
    """`StreamedLayers` read from a checkpoint's weight files. At most two layers are in memory.

    A background thread reads the layer that follows. To be used from one thread.
    """

    def __init__(self, skeleton: Skeleton, weight_map: WeightMap, resident_bytes: int) -> None:
        self.layer_bytes = weight_map.layer_bytes
        self.resident_bytes = resident_bytes
        self.waited_seconds = 0.0
        self.read_seconds = 0.0
        self._skeleton = skeleton
        self._weight_map = weight_map
        self._background = ThreadPoolExecutor(max_workers=1, thread_name_prefix="read-layer")
        self._ahead: dict[int, Future[dict[str, Tensor]]] = {}

    @contextlib.contextmanager
    def layer(self, index: int, following: int | None = None) -> Iterator[nn.Module]:
        """See `StreamedLayers.layer`.

        Raises ModelError if a file cannot be read or a weight of this layer is not finite.
        """
        with self.layers([index], following):
            yield self._skeleton.layers[index]

    @contextlib.contextmanager
    def layers(self, indices: Sequence[int], following: int | None = None) -> Iterator[None]:
        """Several layers at once with their weights, as `layer`."""
        try:
            for index in indices:
                for name, tensor in self._take(index).items():
                    set_tensor(self._skeleton.hf, name, tensor)
            if following is not None:
                self._ahead[following] = self._background.submit(self._read, following)
            yield
        finally:
            for index in indices:
                drop_weights(self._skeleton.layers[index])

    def _take(self, index: int) -> dict[str, Tensor]:
        """A layer's weights, read now unless they were read ahead; any other layer read ahead is let go."""
        started = time.perf_counter()
        ahead = self._ahead.pop(index, None)
        while self._ahead:
            _, other = self._ahead.popitem()
            # Two layers would be in memory beside the current one.
            other.exception()
            del other
        if ahead is None:
            ahead = self._background.submit(self._read, index)
        try:
            return ahead.result()
        finally:
            self.waited_seconds += time.perf_counter() - started

    def _read(self, index: int) -> dict[str, Tensor]:
        started = time.perf_counter()
        try:
            return read_weights(self._skeleton.hf, self._weight_map.layers[index], self._skeleton.name)
        finally:
            self.read_seconds += time.perf_counter() - started
