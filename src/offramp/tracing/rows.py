"""The rows of a trace while they are measured: their contexts, how these are grouped, facts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.tracing.facts import FACTS, Fact
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


@dataclass(frozen=True)
class NonFinite:
    """Where the non-finite numbers of a document begin: exit (layer) and position."""

    layer: int
    position: int


class FactTable:
    """Columns [rows, exits] by fact, and where the non-finite numbers of each document begin."""

    def __init__(self, rows: Rows, exits: Sequence[int], facts: Sequence[Fact] = FACTS) -> None:
        self.rows = rows
        self.exits = exits
        self.nonfinite: dict[int, NonFinite] = {}
        self.columns: dict[str, Tensor] = {
            fact.name: torch.empty(len(rows), len(exits), dtype=getattr(torch, fact.dtype)) for fact in facts
        }

    @property
    def final(self) -> int:
        """Place of exit L among the exits."""
        return len(self.exits) - 1

    def put(self, index: int, rows: slice, **values: Tensor | float) -> None:
        """Set facts of some rows at one exit."""
        for name, value in values.items():
            self.columns[name][rows, index] = value

    def note_nonfinite(self, index: int, rows: slice, fine: Tensor) -> None:
        """Remember where each document's bad numbers begin: the shallowest exit, then the earliest position.

        A bad state spreads to other positions in the layers above it, so depth comes first. fine: bool, one
        per row of the slice.
        """
        for offset in torch.nonzero(~fine).flatten().tolist():
            row = rows.start + offset
            self.note_nonfinite_at(index, int(self.rows.document[row]), int(self.rows.position[row]))

    def note_nonfinite_at(self, index: int, document: int, position: int) -> None:
        """Remember a bad number of a document at one exit and position, if it is the first."""
        found = NonFinite(self.exits[index], position)
        known = self.nonfinite.setdefault(document, found)
        if (found.layer, found.position) < (known.layer, known.position):
            self.nonfinite[document] = found
