"""The rows of a trace: which contexts they come from, and how contexts are taken together."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.workloads.packing import Context

BLOCK_ROWS = 512
"""Rows whose statistics are taken together: positions are the outer loop, exits the inner one."""


@dataclass(frozen=True)
class Rows:
    """Which document and position each row is, and what follows it: int64 [rows] each."""

    document: Tensor
    position: Tensor
    next_token: Tensor

    @classmethod
    def of(cls, contexts: Sequence[Context]) -> Rows:
        """The rows of some contexts in order."""
        document = [context.document for context in contexts for _ in range(context.rows)]
        position = [p for context in contexts for p in range(context.first_row, len(context.ids))]
        following = [token for context in contexts for token in context.next_tokens]
        return cls(torch.tensor(document), torch.tensor(position), torch.tensor(following))

    def __len__(self) -> int:
        return len(self.document)


def slices(start: int, stop: int, size: int) -> Iterator[slice]:
    """Consecutive slices of up to `size` rows from `start` to `stop`."""
    for first in range(start, stop, size):
        yield slice(first, min(first + size, stop))


def equal_length_batches(contexts: Sequence[Context], tokens: int) -> Iterator[list[Context]]:
    """Consecutive contexts of equal length, up to some tokens together: no padding is ever needed."""
    batch: list[Context] = []
    for context in contexts:
        same = bool(batch) and len(batch[0].ids) == len(context.ids)
        if batch and not (same and (len(batch) + 1) * len(context.ids) <= tokens):
            yield batch
            batch = []
        batch.append(context)
    if batch:
        yield batch


def groups_of(contexts: Sequence[Context], rows: int = BLOCK_ROWS) -> Iterator[list[Context]]:
    """Consecutive contexts of up to `rows` rows together; a longer context is a group of its own."""
    group: list[Context] = []
    for context in contexts:
        if group and sum(member.rows for member in group) + context.rows > rows:
            yield group
            group = []
        group.append(context)
    if group:
        yield group
