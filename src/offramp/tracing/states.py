"""Hidden states in memory or in files: of a group of tokens at all exits, or of all batches after a layer."""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import math
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from torch import Tensor

from offramp.errors import DamagedFileError, OfframpError
from offramp.files import sha256_of_file, write_atomically
from offramp.kit.numbers import Whole
from offramp.models.devices import CPU, free_bytes
from offramp.tracing.sealed_parts import damaged, trace_file

MEMORY_BUDGET = 64_000_000
"""Bytes of hidden states kept in memory; a longer context goes to a temporary file, whatever its length."""

PROCESSOR = torch.device(CPU)


class StateStore:
    """Hidden states [exits, rows, features] of a group, written once and read in slices.

    In the memory of the states' device if they fit there (`fit_in_memory`), else in an unnamed temporary file
    that is mapped into memory: the operating system frees it even after a kill.

    Raises OfframpError if the disk has no room for them.
    """

    def __init__(
        self, exits: int, rows: int, features: int, dtype: torch.dtype, device: torch.device = PROCESSOR
    ) -> None:
        self._device = device
        shape = (exits, rows, features)
        size = math.prod(shape) * dtype.itemsize
        if fit_in_memory(size, device):
            self._states = torch.empty(shape, dtype=dtype, device=device)
        else:
            self._states = _mapped_file(size).view(dtype).view(shape)

    def write(self, exit_index: int, start: int, rows: Tensor) -> None:
        """Keep rows of one exit."""
        self._states[exit_index, start : start + len(rows)] = rows

    def read(self, exit_index: int, rows: slice) -> Tensor:
        """Rows of one exit, on the device that they came from."""
        return self._states[exit_index, rows].to(self._device)

    def close(self) -> None:
        """Let go of memory or file."""
        del self._states


def fit_in_memory(size: int, device: torch.device) -> bool:
    """Whether so many bytes are kept in a device's memory: of an accelerator, a quarter of what is free."""
    return size <= (MEMORY_BUDGET if device.type == CPU else free_bytes(device) // 4)


def _mapped_file(size: int) -> Tensor:
    """So many bytes of an unnamed temporary file, all of which the disk has room for: uint8 [size]."""
    with tempfile.TemporaryFile(prefix="offramp-states-") as file:
        try:
            os.posix_fallocate(file.fileno(), 0, size)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                needed = f"{size:,} bytes of hidden states are needed for a while"
                raise disk_full(needed, "trace with a shorter --context") from error
            raise
        return torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="r+", shape=(size,)))


def bytes_of(tensor: Tensor) -> memoryview:
    """The memory of a contiguous tensor."""
    return tensor.view(-1).view(torch.uint8).numpy().data.cast("B")


def read_into(tensor: Tensor, descriptor: int, offset: int) -> Tensor:
    """Fill a contiguous tensor from a place in an open file."""
    data = bytes_of(tensor)
    done = 0
    while done < len(data):
        read = os.preadv(descriptor, [data[done:]], offset + done)
        if read == 0:
            raise OSError("a file of hidden states ended early")
        done += read
    return tensor


def disk_full(what: str, fix: str) -> OfframpError:
    """The error for hidden states that the disk of temporary files has no room for."""
    folder = tempfile.gettempdir()
    return OfframpError(
        f"the disk is full: {what}, {shutil.disk_usage(folder).free:,} bytes are free",
        where=folder,
        fix=f"free some space, set TMPDIR to a folder with more, or {fix}",
    )


class MemoryStates:
    """Outputs of layers in memory, batch by batch: a layer is written once, whole, and read in any order.

    Layers and batches count from 0. A tensor comes back in its shape and dtype, bit for bit, on the CPU. The
    outputs of a layer are given in order; each is asked for when the last is kept.
    """

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

    offset: Whole
    shape: tuple[Whole, ...]
    dtype: str

    @property
    def bytes(self) -> int:
        """That it takes."""
        dtype: torch.dtype = getattr(torch, self.dtype)
        return math.prod(self.shape) * dtype.itemsize


class TemporaryStates:
    """The same in unnamed temporary files: the operating system frees them even after a kill."""

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
            what = f"the hidden states after layer {layer + 1} do not fit"
            raise disk_full(what, "give a larger --memory") from error
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
    shapes = []
    for output in outputs:
        kept = output.to("cpu").contiguous()
        shapes.append((kept.shape, kept.dtype))
        write(bytes_of(kept))
    return places_of(shapes)


def places_of(shapes: Iterable[tuple[Sequence[int], torch.dtype]]) -> list[BatchPlace]:
    """Where outputs of these shapes and dtypes lie, one after the other."""
    places: list[BatchPlace] = []
    offset = 0
    for shape, dtype in shapes:
        places.append(BatchPlace(offset, tuple(shape), str(dtype).removeprefix("torch.")))
        offset += places[-1].bytes
    return places


def read_batch(descriptor: int, place: BatchPlace) -> Tensor:
    """The output of one batch from its place in an open file."""
    return read_into(
        torch.empty(place.shape, dtype=getattr(torch, place.dtype), device="cpu"), descriptor, place.offset
    )


def _write_whole(file: IO[bytes], data: memoryview) -> None:
    while data:
        data = data[file.write(data) :]


STATES_FOLDER = ".states"
"""Beside the parts of the trace that is being made."""

DESCRIPTION = "states.json"
_LAYER_FILE = re.compile(r"layer-\d{4,}\.(bin|json)")


@dataclass(frozen=True)
class _LayerSeal:
    """What vouches for a layer's file."""

    states_of: str
    """What the states are of."""
    layer: Whole
    places: tuple[BatchPlace, ...]
    data_sha256: str


@dataclass(frozen=True)
class _Description:
    """Whose states a folder holds: the request's fingerprint, and the parts that they are of."""

    request: str
    parts: tuple[Whole, ...]


_SEAL, _DESCRIPTION = trace_file(_LayerSeal), trace_file(_Description)


class FolderStates:
    """The same in a folder of their own.

    A layer is a file of raw tensors, and a sealed JSON file that is written after it: shapes, dtypes, the
    SHA-256 of the bytes and what the states are of. Both are flushed to disk and renamed into place.
    """

    def __init__(self, folder: Path, states_of: str, places: Sequence[tuple[BatchPlace, ...]]) -> None:
        """places: of the batches of each layer, as `places_of` has them."""
        self._folder = folder
        self._states_of = states_of
        self._places = places
        self._known: dict[int, tuple[BatchPlace, ...] | None] = {}

    def holds(self, layer: int) -> bool:
        """Whether a layer's file is whole; its bytes are read once to see. A damaged one is deleted."""
        if layer not in self._known:
            self._known[layer] = self._verified(layer)
        return self._known[layer] is not None

    def write(self, layer: int, outputs: Iterable[Tensor]) -> None:
        """Write a layer's file; raises OfframpError if the disk is full, and leaves nothing of it then."""
        places: list[BatchPlace] = []
        digest = hashlib.sha256()

        def write(path: Path) -> None:
            with path.open("wb") as file:

                def write_hashed(data: memoryview) -> None:
                    digest.update(data)
                    file.write(data)

                places.extend(write_batches(write_hashed, outputs))

        self._drop(layer)
        write_atomically(self._data(layer), write)
        seal = _LayerSeal(self._states_of, layer, tuple(places), digest.hexdigest())
        _SEAL.write(self._seal(layer), seal)
        self._known[layer] = seal.places

    def read(self, layer: int, batch: int) -> Tensor:
        """Read the output of one batch."""
        places = self._known[layer]
        if places is None:
            raise LookupError(f"no outputs of layer {layer} are here")
        with self._data(layer).open("rb", buffering=0) as file:
            return read_batch(file.fileno(), places[batch])

    def keep_only(self, layers: Collection[int]) -> None:
        """Delete the files of all other layers."""
        for seal in self._folder.glob("layer-*.json"):
            layer = int(seal.stem.removeprefix("layer-"))
            if layer not in layers:
                self._drop(layer)

    def close(self) -> None:
        """Leave everything for a run that resumes; `remove_states` deletes it."""

    def _data(self, layer: int) -> Path:
        return self._folder / f"layer-{layer:04d}.bin"

    def _seal(self, layer: int) -> Path:
        return self._folder / f"layer-{layer:04d}.json"

    def _drop(self, layer: int) -> None:
        """Delete a layer's files, the one that vouches for the other first."""
        self._seal(layer).unlink(missing_ok=True)
        self._data(layer).unlink(missing_ok=True)
        self._known[layer] = None

    def _verified(self, layer: int) -> tuple[BatchPlace, ...] | None:
        """Where the batches of a layer lie; None if there is no whole file of these states."""
        if not self._seal(layer).exists():
            self._drop(layer)
            return None
        try:
            seal = _SEAL.read(self._seal(layer))
            if seal.states_of != self._states_of or seal.layer != layer:
                raise damaged(self._seal(layer), "it belongs to other states")
            if seal.places != self._places[layer]:
                raise damaged(self._seal(layer), "its batches are not those of the trace")
            data, size = self._data(layer), sum(place.bytes for place in seal.places)
            whole = data.is_file() and data.stat().st_size == size
            if not whole or sha256_of_file(data) != seal.data_sha256:
                raise damaged(data, "its bytes are not those that were written")
        except DamagedFileError as error:
            print(f"offramp: computed again: {error.what}", file=sys.stderr)
            self._drop(layer)
            return None
        return seal.places


LayerStates = MemoryStates | TemporaryStates | FolderStates


def reusable_parts(folder: Path, request: str, parts: Sequence[int]) -> tuple[int, ...]:
    """The parts whose states an earlier run of the same request left; none if it left not all of these.

    They may be of other parts too, which were finished since. request: its fingerprint.
    """
    description = _described(folder / STATES_FOLDER / DESCRIPTION)
    if description is None or description.request != request or not set(parts) <= set(description.parts):
        return ()
    return description.parts


def prepare_states(folder: Path, request: str, parts: Sequence[int]) -> Path:
    """The folder for states of these parts; what is there is kept if it is of just them, else deleted."""
    states = folder / STATES_FOLDER
    if reusable_parts(folder, request, parts) != tuple(parts):
        remove_states(folder)
        states.mkdir(exist_ok=True)
        _DESCRIPTION.write(states / DESCRIPTION, _Description(request, tuple(parts)))
    return states


def _described(path: Path) -> _Description | None:
    if not path.is_file():
        return None
    try:
        return _DESCRIPTION.read(path)
    except DamagedFileError as error:
        print(f"offramp: computed again: {error.what}", file=sys.stderr)
        path.unlink()
        return None


def states_files(folder: Path) -> dict[str, None]:
    """The files of a trace's states, by path in the folder of the trace."""
    states = folder / STATES_FOLDER
    layers = [path.name for path in states.glob("layer-*") if _LAYER_FILE.fullmatch(path.name)]
    there = (DESCRIPTION,) if (states / DESCRIPTION).is_file() else ()
    return {f"{STATES_FOLDER}/{name}": None for name in (*there, *layers)}


def remove_states(folder: Path) -> None:
    """Delete the states of a trace, if there are any, and their folder if nothing else lies in it."""
    for name in states_files(folder):  # the description first: the rest vouches for nothing without it
        (folder / name).unlink()
    with contextlib.suppress(OSError):
        (folder / STATES_FOLDER).rmdir()


def held_bytes(folder: Path) -> int:
    """Bytes of the states that lie in a trace's folder."""
    return sum(path.stat().st_size for path in (folder / STATES_FOLDER).glob("layer-*.bin"))
