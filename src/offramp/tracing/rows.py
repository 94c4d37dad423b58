"""The rows of a trace while they are measured: their contexts, how these are grouped, facts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.heads.output_head import BLOCK_ROWS
from offramp.tracing.facts import FACTS, Fact
from offramp.workloads.packing import Context


@dataclass(frozen=True)
class Rows:
    """Which document and position each row is, and what follows it: int64 [rows] each, on the host."""

    document: NDArray[np.int64]
    position: NDArray[np.int64]
    next_token: NDArray[np.int64]

    @classmethod
    def of(cls, contexts: Sequence[Context]) -> Rows:
        """The rows of some contexts in order."""
        document = [context.document for context in contexts for _ in range(context.rows)]
        position = [p for context in contexts for p in range(context.first_row, len(context.ids))]
        following = [token for context in contexts for token in context.next_tokens]
        return cls(*(np.array(column, dtype=np.int64) for column in (document, position, following)))

    def __len__(self) -> int:
        return len(self.document)

    def __getitem__(self, some: NDArray[np.bool_]) -> Rows:
        """Some of the rows."""
        return Rows(self.document[some], self.position[some], self.next_token[some])


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


@dataclass(frozen=True, order=True)
class NonFinite:
    """Where the non-finite numbers of a document begin: exit (layer) and position.

    A bad state spreads to other positions in the layers above it, so depth comes first.
    """

    layer: int
    position: int


class FactTable:
    """Columns [rows, exits] by fact, and where they met a non-finite number, on one device.

    next_token: int64 [rows]. nonfinite: bool [rows, exits], looked at by the host once all is measured, since
    to look it would have to wait.
    """

    def __init__(
        self, rows: Rows, exits: Sequence[int], device: torch.device, facts: Sequence[Fact] = FACTS
    ) -> None:
        self.rows = rows
        self.exits = exits
        self.next_token = torch.from_numpy(rows.next_token).to(device)
        documents, place = np.unique(rows.document, return_inverse=True)
        self._documents = len(documents)
        self._document = torch.from_numpy(place).to(device)
        self.nonfinite = torch.zeros(len(rows), len(exits), dtype=torch.bool, device=device)
        self.columns: dict[str, Tensor] = {
            fact.name: torch.empty(len(rows), len(exits), dtype=getattr(torch, fact.dtype), device=device)
            for fact in facts
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
        """Remember the rows of a slice at one exit that met a bad number. fine: bool, one per row."""
        self.nonfinite[rows, index] |= ~fine

    def in_whole_document(self, rows: slice) -> Tensor:
        """Whether no row of the same document has met a bad number so far: bool, one per row of the slice."""
        bad = torch.zeros(self._documents, dtype=torch.int32, device=self.nonfinite.device)
        bad.index_add_(0, self._document, self.nonfinite.any(1).int())
        return bad[self._document[rows]] == 0


def first_nonfinite(rows: Rows, exits: Sequence[int], mask: NDArray[np.bool_]) -> dict[int, NonFinite]:
    """Where each document's bad numbers begin, by document. mask: bool [rows, exits]."""
    first: dict[int, NonFinite] = {}
    for row, index in np.argwhere(mask):
        document, here = int(rows.document[row]), NonFinite(exits[index], int(rows.position[row]))
        first[document] = min(here, first.get(document, here))
    return first
