"""The facts of one group of rows while they are being measured, and the defects met on the way."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.tracing.facts import FACTS, Fact
from offramp.tracing.rows import Rows


@dataclass(frozen=True)
class Defect:
    """Where the non-finite numbers of a document begin: exit (layer) and position."""

    layer: int
    position: int


class FactTable:
    """Columns [rows, exits] by fact, and the first defect of each document."""

    def __init__(self, rows: Rows, exits: Sequence[int], facts: Sequence[Fact] = FACTS) -> None:
        self.rows = rows
        self.exits = exits
        self.defects: dict[int, Defect] = {}
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

    def note_defects(self, index: int, rows: slice, fine: Tensor) -> None:
        """Remember where each document's bad numbers begin: the shallowest exit, then the earliest position.

        A bad state spreads to other positions in the layers above it, so depth comes first. fine: bool, one
        per row of the slice.
        """
        for offset in torch.nonzero(~fine).flatten().tolist():
            row = rows.start + offset
            self.note_defect(index, int(self.rows.document[row]), int(self.rows.position[row]))

    def note_defect(self, index: int, document: int, position: int) -> None:
        """Remember a bad number of a document at one exit and position, if it is the first."""
        found = Defect(self.exits[index], position)
        known = self.defects.setdefault(document, found)
        if (found.layer, found.position) < (known.layer, known.position):
            self.defects[document] = found
