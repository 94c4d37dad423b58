"""Hidden states of all batches after each layer, between the layers: in memory or in unnamed files."""

from __future__ import annotations

import errno
import functools
import os
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import IO, Protocol

import torch
from torch import Tensor

from offramp.errors import OfframpError


class LayerStates(Protocol):
    """Outputs of layers, batch by batch: a layer is written once, whole, and read in any order.

    Layers and batches count from 0. A tensor comes back in its shape and dtype, bit for bit, on the CPU.
    """

    def holds(self, layer: int) -> bool:
        """Whether the outputs of all batches of a layer are here, as they were written."""

    def write(self, layer: int, outputs: Iterable[Tensor]) -> None:
        """Keep the outputs of all batches of a layer, in order; each is asked for when the last is kept."""

    def read(self, layer: int, batch: int) -> Tensor:
        """The output of one batch; a tensor of the caller's own."""

    def keep_only(self, layers: Collection[int]) -> None:
        """Give the room of all other layers back."""

    def close(self) -> None:
        """Give memory back; what a resumed run can use stays."""


class MemoryStates:
    """Outputs of layers in memory."""

    def __init__(self) -> None:
        self._outputs: dict[int, list[Tensor]] = {}

    def holds(self, layer: int) -> bool:
        """Whether a layer was written."""
        return layer in self._outputs

    def write(self, layer: int, outputs: Iterable[Tensor]) -> None:
        """Keep the outputs of a layer."""
        # A copy: an output may be a view of something larger, and layers may change their input in place.
        self._outputs[layer] = [output.to("cpu", copy=True).contiguous() for output in outputs]

    def read(self, layer: int, batch: int) -> Tensor:
        """A copy of the output of one batch."""
        return self._outputs[layer][batch].clone()

    def keep_only(self, layers: Collection[int]) -> None:
        """Drop all other layers."""
        self._outputs = {layer: outputs for layer, outputs in self._outputs.items() if layer in layers}

    def close(self) -> None:
        """Drop everything."""
        self._outputs.clear()


@dataclass(frozen=True)
class BatchPlace:
    """Where the output of one batch lies in a layer's file."""

    offset: int
    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def size(self) -> int:
        """Bytes."""
        return torch.Size(self.shape).numel() * self.dtype.itemsize


class TemporaryStates:
    """Outputs of layers in unnamed temporary files: the operating system frees them even after a kill."""

    def __init__(self) -> None:
        self._files: dict[int, tuple[IO[bytes], list[BatchPlace]]] = {}

    def holds(self, layer: int) -> bool:
        """Whether a layer was written."""
        return layer in self._files

    def write(self, layer: int, outputs: Iterable[Tensor]) -> None:
        """Keep the outputs of a layer; raises OfframpError if the disk is full."""
        file = tempfile.TemporaryFile(prefix="offramp-states-", buffering=0)  # noqa: SIM115 - kept open
        try:
            self._files[layer] = (file, write_batches(functools.partial(_write_whole, file), outputs))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _disk_full(layer) from error
        finally:
            if layer not in self._files:
                file.close()

    def read(self, layer: int, batch: int) -> Tensor:
        """Read the output of one batch."""
        file, places = self._files[layer]
        return read_batch(file.fileno(), places[batch])

    def keep_only(self, layers: Collection[int]) -> None:
        """Close and so delete the files of all other layers."""
        for layer in [layer for layer in self._files if layer not in layers]:
            self._files.pop(layer)[0].close()

    def close(self) -> None:
        """Close and so delete every file."""
        self.keep_only(())


def write_batches(write: Callable[[memoryview], object], outputs: Iterable[Tensor]) -> list[BatchPlace]:
    """Write the raw bytes of the outputs one after the other, and say where they are."""
    places: list[BatchPlace] = []
    for output in outputs:
        kept = output.to("cpu").contiguous()
        offset = places[-1].offset + places[-1].size if places else 0
        places.append(BatchPlace(offset, tuple(kept.shape), kept.dtype))
        write(_bytes_of(kept))
    return places


def read_batch(descriptor: int, place: BatchPlace) -> Tensor:
    """The output of one batch from its place in an open file."""
    output = torch.empty(place.shape, dtype=place.dtype)
    data = _bytes_of(output)
    done = 0
    while done < len(data):
        read = os.preadv(descriptor, [data[done:]], place.offset + done)
        if read == 0:
            raise OSError("a file of hidden states ended early")
        done += read
    return output


def _write_whole(file: IO[bytes], data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


def _disk_full(layer: int) -> OfframpError:
    folder = tempfile.gettempdir()
    free = shutil.disk_usage(folder).free
    return OfframpError(
        f"the disk is full: the hidden states after layer {layer + 1} do not fit, {free:,} bytes are free",
        where=folder,
        fix="free some space, set TMPDIR to a folder with more, or give a larger --memory",
    )


def _bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data.cast("B")
