"""CALM's strategy: K and V of skipped layers come from the hidden state that left, also row by row."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.decoding.engine.sequences import Inputs, States
from offramp.decoding.strategies.strategy import Advance, Strategy, Work
from offramp.policies.kv import PROPAGATE


@dataclass(frozen=True)
class ExitStep:
    """Where the sequences left together.

    exit: 1..L. hidden, before: output and input of layer `exit` [batch, 1, hidden]; before is None where
    nothing reads it. inputs: what the layers were given.
    """

    exit: int
    hidden: Tensor
    before: Tensor | None
    inputs: Inputs


def feed(work: Work, tokens: Tensor) -> Inputs:
    """Feed one token per row, int64 [batch, 1], and begin it: a step of every row that is present."""
    sequences, present = work.sequences, work.chooser.present
    sequences.feed(tokens if present is None else tokens[present])
    work.meter.count("overhead", rows=sequences.batch)
    work.driver.begin()
    return sequences.inputs(sequences.length - 1, sequences.length)


def descend(work: Work, inputs: Inputs) -> ExitStep:
    """Run layers until every row has left; all rows go as deep as the deepest of their own exits."""
    driver, hidden, before, done = work.driver, inputs.hidden, None, 0
    for exit in driver.stops:
        if not driver.running.any():
            break
        before, hidden = run_to(work, hidden, inputs, done, exit)
        done = exit
        driver.at(exit, hidden, before)
    if driver.running.any():
        before, hidden = run_to(work, hidden, inputs, done, driver.layers)
        done = driver.layers
    return ExitStep(done, hidden, before, inputs)


def run_to(work: Work, hidden: Tensor, inputs: Inputs, first: int, last: int) -> tuple[Tensor | None, Tensor]:
    """Run layers first+1..last: the input of the last one, None where nothing reads it, and its output."""
    run = work.sequences.run
    if not work.driver.reader.wants_before(last):
        return None, run(hidden, inputs, first, last)
    before = run(hidden, inputs, first, last - 1)
    return before, run(before, inputs, last - 1, last)


def exit_logits(work: Work, step: ExitStep) -> Tensor:
    """The logits at the exit, [batch, vocabulary]; the policy is told that the token is done."""
    driver = work.driver
    if step.exit == driver.layers:
        logits = read_final(work, step.hidden)
        driver.end(logits, step.hidden, step.before)
    else:
        logits = driver.logits(step.exit, step.hidden)
        driver.end()
    return logits


def read_final(work: Work, hidden: Tensor) -> Tensor:
    """The logits at exit L of states [rows, 1, hidden]: the full model's, or off the short list as it says.

    float32 [rows, vocabulary]; read off the short list, the whole head is not computed.
    """
    driver = work.driver
    return (
        driver.logits(driver.layers, hidden) if driver.policy.short_head else work.sequences.read_out(hidden)
    )


def choose(
    work: Work, logits: Tensor, exits: int | NDArray[np.int64], layers: NDArray[np.int64] | None = None
) -> Advance:
    """One new token per row from logits [batch, vocabulary].

    exits: where they were read, or each row's, int64 [batch]. layers: as of `Advance`.
    """
    choice = work.chooser.choose(work.tokens(), logits)
    column = np.full((len(choice.chosen), 1), exits if isinstance(exits, int) else exits[:, None])
    return Advance.of(choice, column, layers)


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
    exits = work.driver.own
    return choose(work, logits, exits, np.where(work.driver.finished, 0, exits))


class RowsApart:
    """The rows of one step on their way down.

    rows: those that go on, ascending. hidden: their state after `depth` layers [rows, 1, hidden]; before: the
    state before the last of these layers, None where nothing reads it. left: of the other rows.
    """

    def __init__(self, work: Work, inputs: Inputs, repair: bool, left: LeftStates) -> None:
        self.work = work
        self.repair = repair
        self.inputs = inputs
        self.rows: NDArray[np.int64] = np.flatnonzero(~work.driver.finished)
        self.left = left
        self.hidden = inputs.hidden[self._index(self.rows)]
        self.before: Tensor | None = None
        self.depth = 0
        self._logits: Tensor | None = None

    def run(self) -> Tensor:
        """Run each row as deep as it goes: its logits, float32 [batch, vocabulary], zeros for those over."""
        driver, layers = self.work.driver, self.work.engine.layers
        for exit in driver.stops:
            if not len(self.rows):
                break
            self._run_to(exit)
            leaving = driver.at(exit, self.hidden, self.before, self.rows)[self.rows]
            if leaving.any():
                self._leave(exit, leaving)
        if len(self.rows):
            self._run_to(layers)
            logits = read_final(self.work, self.hidden)
            self._keep_logits(self.rows, logits)
            driver.end(logits, self.hidden, self.before, self.rows)
        else:
            if self.repair:
                given = self.left.given(self.depth, layers)
                self.work.sequences.write(given, self.inputs, self.depth, layers)
            driver.end()
        assert self._logits is not None  # some row is not over, and every such row has left
        return self._logits

    def _run_to(self, exit: int) -> None:
        self.before = None
        if self.work.driver.reader.wants_before(exit):
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
        # By numbers: with a mask the host would wait for how many there are.
        going, stays = np.flatnonzero(leaving), np.flatnonzero(~leaving)
        chosen, gone = self._index(going), self.rows[going]
        self._keep_logits(gone, self.work.driver.logits(exit, self.hidden, chosen))
        self.left.leave(exit, self._index(gone), self.hidden[chosen])
        self.hidden, self.rows = self.hidden[self._index(stays)], self.rows[stays]
        self.work.driver.reader.keep_rows(stays)

    def _keep_logits(self, rows: NDArray[np.int64], logits: Tensor) -> None:
        if self._logits is None:
            shape = (self.work.sequences.batch, logits.shape[-1])
            self._logits = torch.zeros(shape, dtype=torch.float32, device=logits.device)
        self._logits[self._index(rows)] = logits.float()

    def _index(self, rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(rows).to(self.inputs.hidden.device)


class Propagate(Strategy, of=PROPAGATE):
    """K and V of skipped layers come from the exit's hidden state; CALM (arXiv 2207.07061, section 3.3).

    Exact: a token that nobody before left early. Approximate: every token after one that left, in all layers
    that were skipped, since the hidden state there is another than the one that the layers would have made.
    A layer with a recurrent state cannot be projected: it runs, on the exit's hidden state, and is counted.
    """

    def advance(self, tokens: Tensor) -> Advance:
        """Feed the last tokens, int64 [batch, 1], and predict one more for each row."""
        work = self.work
        if work.options.batching == "rebatch" and work.sequences.batch > 1:
            return advance_apart(work, feed(work, tokens), left=self.left_states)
        step = descend(work, feed(work, tokens))
        logits = exit_logits(work, step)
        given = self.given(step.exit, step.hidden)
        work.sequences.write(given, step.inputs, step.exit, work.engine.layers)
        return choose(work, logits, step.exit)

    def given(self, exit: int, hidden: Tensor) -> States:
        """What the layers after an exit are given where all rows left, with states [batch, 1, hidden]."""
        return hidden

    def left_states(self, hidden: Tensor) -> LeftStates:
        """The same where rows leave one by one. hidden: before the first layer [batch, 1, hidden]."""
        return LeftStates(hidden)
