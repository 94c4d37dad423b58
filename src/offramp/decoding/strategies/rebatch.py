"""A step in which every row leaves at its own exit, and the rest go on as a smaller batch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.decoding.engine.inputs import Inputs
from offramp.decoding.engine.sequences import States
from offramp.decoding.strategies.descent import read_final
from offramp.decoding.strategies.strategy import Advance, Work


class LeftStates:
    """What the rows of a step that have left give the layers that they skip: the state with which each left.

    hidden: of all rows before the first layer [batch, 1, hidden], which those that are over give.
    """

    def __init__(self, hidden: Tensor) -> None:
        self._left = hidden.clone()

    def leave(self, exit: int, rows: Tensor, hidden: Tensor) -> None:
        """Some rows leave, int64 [rows], with their states there [rows, 1, hidden]."""
        self._left[rows] = hidden

    def given(self, first: int, last: int, rows: Tensor | None = None) -> States:
        """What some rows, int64 [rows], or all of them give layers first+1..last."""
        return self._left if rows is None else self._left[rows]


def advance_apart(
    work: Work, inputs: Inputs, *, repair: bool = True, left: Callable[[Tensor], LeftStates] = LeftStates
) -> Advance:
    """One new token per row, each from the exit that its own policy decides.

    A row that has left no longer runs; K and V of the layers above are projected from where it left, for all
    such rows of a layer together. Rows that are over leave before the first layer.

    repair: whether layers that no row runs get K and V too. left: keeps what skipped layers are given.
    """
    step = RowsApart(work, inputs, repair, left(inputs.hidden))
    logits = step.run()
    choice = work.chooser.choose(work.sequences.ids, logits)
    exits = work.asking.own.copy()
    layers = np.where(work.asking.finished, 0, exits)
    return Advance(
        choice.fed[:, None], choice.chosen[:, None], exits[:, None], choice.scores[:, None], layers=layers
    )


class RowsApart:
    """The rows of one step on their way down.

    rows: those that go on, ascending. hidden: their state after `depth` layers [rows, 1, hidden]; before: the
    state before the last of these layers, None where nothing reads it. left: of the other rows.
    """

    def __init__(self, work: Work, inputs: Inputs, repair: bool, left: LeftStates) -> None:
        self.work = work
        self.repair = repair
        self.inputs = inputs
        self.rows: NDArray[np.int64] = np.flatnonzero(~work.asking.finished)
        self.left = left
        self.hidden = inputs.hidden[self._index(self.rows)]
        self.before: Tensor | None = None
        self.depth = 0
        self._logits: Tensor | None = None

    def run(self) -> Tensor:
        """Run each row as deep as it goes: its logits, float32 [batch, vocabulary], zeros for those over."""
        asking, layers = self.work.asking, self.work.engine.layers
        for exit in asking.stops:
            if not len(self.rows):
                break
            self._run_to(exit)
            leaving = asking.at(exit, self.hidden, self.before, self.rows)[self.rows]
            if leaving.any():
                self._leave(exit, leaving)
        if len(self.rows):
            self._run_to(layers)
            logits = read_final(self.work, self.hidden)
            self._keep_logits(self.rows, logits)
            asking.end(logits, self.hidden, self.before, self.rows)
        else:
            if self.repair:
                given = self.left.given(self.depth, layers)
                self.work.sequences.write(given, self.inputs, self.depth, layers)
            asking.end()
        assert self._logits is not None  # some row is not over, and every such row has left
        return self._logits

    def _run_to(self, exit: int) -> None:
        self.before = None
        if self.work.asking.reader.wants_before(exit):
            self.before = self.hidden = self._run_layers(exit - 1)
        self.hidden = self._run_layers(exit)

    def _run_layers(self, last: int) -> Tensor:
        sequences, first, self.depth = self.work.sequences, self.depth, last
        if first == last:
            return self.hidden
        if len(self.rows) == sequences.batch:
            return sequences.run(self.hidden, self.inputs, first, last)
        others = np.setdiff1d(np.arange(sequences.batch), self.rows)
        left = self.left.given(first, last, self._index(others))
        return sequences.run_rows(self.hidden, left, self.rows, self.inputs.start, first, last)

    def _leave(self, exit: int, leaving: NDArray[np.bool_]) -> None:
        """Some of the rows leave, bool [rows]."""
        chosen = torch.from_numpy(leaving).to(self.hidden.device)
        gone = self.rows[leaving]
        self._keep_logits(gone, self.work.asking.logits(exit, self.hidden, chosen))
        self.left.leave(exit, self._index(gone), self.hidden[chosen])
        self.hidden, self.rows = self.hidden[~chosen], self.rows[~leaving]
        self.work.asking.reader.keep_rows(np.flatnonzero(~leaving))

    def _keep_logits(self, rows: NDArray[np.int64], logits: Tensor) -> None:
        if self._logits is None:
            shape = (self.work.sequences.batch, logits.shape[-1])
            self._logits = torch.zeros(shape, dtype=torch.float32, device=logits.device)
        self._logits[self._index(rows)] = logits.float()

    def _index(self, rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(rows).to(self.inputs.hidden.device)
