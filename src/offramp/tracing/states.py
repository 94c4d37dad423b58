"""Hidden states of a group of tokens at every exit, in their device's memory or, past a budget, in a file."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from typing import Protocol

import torch
from torch import Tensor

from offramp.errors import OfframpError
from offramp.models.devices import CPU, free_bytes

MEMORY_BUDGET = 64_000_000
"""Bytes of hidden states kept in memory; a longer context goes to a temporary file, whatever its length."""

PROCESSOR = torch.device(CPU)


class StateStore(Protocol):
    """Hidden states [exits, rows, features] that are written once and read in slices."""

    def write(self, exit_index: int, start: int, rows: Tensor) -> None:
        """Keep rows [count, features] of one exit from row `start` on."""

    def read(self, exit_index: int, rows: slice) -> Tensor:
        """Rows [count, features] of one exit."""

    def close(self) -> None:
        """Give the memory or the file back."""


class MemoryStore:
    """States in one tensor."""

    def __init__(
        self, exits: int, rows: int, features: int, dtype: torch.dtype, device: torch.device = PROCESSOR
    ) -> None:
        self._states = torch.empty(exits, rows, features, dtype=dtype, device=device)

    def write(self, exit_index: int, start: int, rows: Tensor) -> None:
        """Keep rows of one exit."""
        self._states[exit_index, start : start + len(rows)] = rows

    def read(self, exit_index: int, rows: slice) -> Tensor:
        """Rows of one exit."""
        return self._states[exit_index, rows]

    def close(self) -> None:
        """Drop the tensor."""
        del self._states


class FileStore:
    """States in an unnamed temporary file: the operating system frees it even after a kill.

    device: where they come from and are read to.
    """

    def __init__(
        self, exits: int, rows: int, features: int, dtype: torch.dtype, device: torch.device = PROCESSOR
    ) -> None:
        self._device = device
        self._rows = rows
        self._features = features
        self._dtype = dtype
        self._row_bytes = features * dtype.itemsize
        self._file = tempfile.TemporaryFile(prefix="offramp-states-")  # noqa: SIM115 - closed by `close`
        try:
            os.posix_fallocate(self._file.fileno(), 0, exits * rows * self._row_bytes)
        except OSError as error:
            self._file.close()
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                needed = f"{exits * rows * self._row_bytes:,} bytes of hidden states are needed for a while"
                raise disk_full(needed, "trace with a shorter --context") from error
            raise

    def _offset(self, exit_index: int, row: int) -> int:
        return (exit_index * self._rows + row) * self._row_bytes

    def write(self, exit_index: int, start: int, rows: Tensor) -> None:
        """Write rows of one exit at their place."""
        data = bytes_of(rows.to(PROCESSOR).contiguous())
        done = 0
        while done < len(data):
            done += os.pwrite(self._file.fileno(), data[done:], self._offset(exit_index, start) + done)

    def read(self, exit_index: int, rows: slice) -> Tensor:
        """Read rows of one exit."""
        count = rows.stop - rows.start
        states = torch.empty(count, self._features, dtype=self._dtype, device=PROCESSOR)
        return read_into(states, self._file.fileno(), self._offset(exit_index, rows.start)).to(self._device)

    def close(self) -> None:
        """Close and so delete the file."""
        self._file.close()


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


def open_store(
    exits: int, rows: int, features: int, dtype: torch.dtype, device: torch.device = PROCESSOR
) -> StateStore:
    """A store in the memory of the states' device if it fits the budget there, else in a file.

    The budget of an accelerator is a quarter of what is free.
    """
    budget = MEMORY_BUDGET if device.type == CPU else free_bytes(device) // 4
    size = exits * rows * features * dtype.itemsize
    kind = MemoryStore if size <= budget else FileStore
    return kind(exits, rows, features, dtype, device)
