"""Memory for the logits of some rows, by what a processor's cache or an accelerator's free memory allows."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from offramp.models.devices import CPU, free_bytes
from offramp.tracing.rows import BLOCK_ROWS
from offramp.tracing.statistics import BLOCK

BUFFER_BYTES = 51_000_000
"""Of the buffer of logits on a processor: enough rows for an efficient product, small beside any model."""

ACCELERATOR_BUFFER_BYTES = 300_000_000
"""The same on an accelerator, at most: a whole block of rows of 128 thousand tokens in float32."""

PADDING = -1e30
"""Far below any logit, and finite where the dtype has such a number, which float16 has not."""


def buffer_rows(row_bytes: int, device: torch.device) -> int:
    """Rows of a buffer: a power of two, so that whole chunks make up a block of BLOCK_ROWS."""
    most = BUFFER_BYTES
    if device.type != CPU:
        most = max(BUFFER_BYTES, min(ACCELERATOR_BUFFER_BYTES, free_bytes(device) // 16))
    rows = BLOCK_ROWS
    while rows > 16 and rows * row_bytes > most:
        rows //= 2
    return rows


def padded_size(vocabulary_size: int) -> int:
    """The vocabulary rounded up to whole blocks of columns."""
    return math.ceil(vocabulary_size / BLOCK) * BLOCK


class LogitsBuffer:
    """Memory for a head's output [rows, padded vocabulary], in its dtype and, in fewer rows, in float32.

    columns: the vocabulary; what is beyond is padding.
    """

    def __init__(self, columns: int, dtype: torch.dtype, device: torch.device) -> None:
        self.padding = PADDING if torch.finfo(dtype).min < PADDING else -math.inf
        self._columns = columns
        rows = buffer_rows(padded_size(columns) * dtype.itemsize, device)
        self._allocate(torch.empty(rows, padded_size(columns), dtype=dtype, device=device))

    def _allocate(self, memory: Tensor) -> None:
        self.whole = memory.fill_(self.padding)
        self.exact = memory
        if memory.dtype != torch.float32:  # the same memory, read as half as many float32 rows
            self.exact = memory.view(-1).view(torch.float32).view(-1, memory.shape[1])

    @property
    def rows(self) -> int:
        """Rows in the head's dtype."""
        return len(self.whole)

    def halve(self) -> None:
        """Keep room for half as many rows; what is there is lost."""
        shape = (max(self.rows // 2, 2), self.whole.shape[1])
        dtype, device = self.whole.dtype, self.whole.device
        del self.whole, self.exact  # before the smaller memory is asked for
        self._allocate(torch.empty(shape, dtype=dtype, device=device))

    def rounded_rows(self, count: int) -> Tensor:
        """Memory of some rows in the head's dtype, whose padding is as it should be."""
        if self.exact is not self.whole:
            self.whole[:count, self._columns :] = self.padding  # float32 rows were there, perhaps
        return self.whole[:count]
