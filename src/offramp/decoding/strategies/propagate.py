"""`propagate`: skipped layers get K and V of the state that left. Also what all at-once strategies share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.decoding.engine.sequences import Inputs, States
from offramp.decoding.strategies.next_token import Advance
from offramp.decoding.strategies.strategy import Gear, Strategy
from offramp.policies.kv import PROPAGATE


@dataclass(frozen=True)
class ExitStep:
    """Where the sequences left together."""

    exit: int
    """1..L."""
    hidden: Tensor
    before: Tensor | None
    """Output and input of layer `exit` [batch, 1, hidden]; before is None where nothing reads it."""
    inputs: Inputs
    """What the layers were given."""


def feed(gear: Gear, tokens: Tensor) -> Inputs:
    """Feed one token per row, int64 [batch, 1], and begin it: a step of every row that is present."""
    sequences, present = gear.sequences, gear.chooser.present
    sequences.feed(tokens if present is None else tokens[present])
    gear.meter.count("overhead", rows=sequences.batch)
    gear.driver.begin()
    return sequences.inputs(sequences.length - 1, sequences.length)


def descend(gear: Gear, inputs: Inputs) -> ExitStep:
    """Run layers until every row has left; all rows go as deep as the deepest of their own exits."""
    driver, hidden, before, done = gear.driver, inputs.hidden, None, 0
    for exit in driver.stops:
        if not driver.running.any():
            break
        before, hidden = run_to(gear, hidden, inputs, done, exit)
        done = exit
        driver.at(exit, hidden, before)
    if driver.running.any():
        before, hidden = run_to(gear, hidden, inputs, done, driver.layers)
        done = driver.layers
    return ExitStep(done, hidden, before, inputs)


def run_to(gear: Gear, hidden: Tensor, inputs: Inputs, first: int, last: int) -> tuple[Tensor | None, Tensor]:
    """Run layers first+1..last: the input of the last one, None where nothing reads it, and its output."""
    run = gear.sequences.run
    if not gear.driver.reader.wants_before(last):
        return None, run(hidden, inputs, first, last)
    before = run(hidden, inputs, first, last - 1)
    return before, run(before, inputs, last - 1, last)


def exit_logits(gear: Gear, step: ExitStep) -> Tensor:
    """The logits at the exit, [batch, vocabulary]; the policy is told that the token is done."""
    driver = gear.driver
    if step.exit == driver.layers:
        logits = read_final(gear, step.hidden)
        driver.end(logits, step.hidden, step.before)
    else:
        logits = driver.logits(step.exit, step.hidden)
        driver.end()
    return logits


def read_final(gear: Gear, hidden: Tensor) -> Tensor:
    """The logits at exit L of states [rows, 1, hidden]: the full model's, or off the short list as it says.

    float32 [rows, vocabulary]; read off the short list, the whole head is not computed.
    """
    driver = gear.driver
    return (
        driver.logits(driver.layers, hidden) if driver.policy.short_head else gear.sequences.read_out(hidden)
    )


def choose(
    gear: Gear, logits: Tensor, exits: int | NDArray[np.int64], layers: NDArray[np.int64] | None = None
) -> Advance:
    """One new token per row from logits [batch, vocabulary].

    exits: where they were read, or each row's, int64 [batch]. layers: as of `Advance`.
    """
    choice = gear.chooser.choose(gear.tokens(), logits)
    column = np.full((len(choice.chosen), 1), exits if isinstance(exits, int) else exits[:, None])
    return Advance((choice,), column, layers)


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


class RowsApart:
    """The rows of one step on their way down, each to the exit that its own policy decides.

    A row that has left no longer runs; K and V of the layers above are projected from where it left, for all
    such rows of a layer together. Rows that are over leave before the first layer.

    rows: those that go on, ascending. hidden: their state after `depth` layers [rows, 1, hidden]; before: the
    state before the last of these layers, None where nothing reads it. left: of the other rows.
    """

    def __init__(self, strategy: Propagate, inputs: Inputs) -> None:
        self.gear = strategy.gear
        self.fills = strategy.fills
        self.inputs = inputs
        self.rows: NDArray[np.int64] = np.flatnonzero(~self.gear.driver.finished)
        self.left = strategy.left_states(inputs.hidden)
        self.hidden = inputs.hidden[self._index(self.rows)]
        self.before: Tensor | None = None
        self.depth = 0
        self._logits: Tensor | None = None

    def run(self) -> Tensor:
        """Run each row as deep as it goes: its logits, float32 [batch, vocabulary], zeros for those over."""
        driver, layers = self.gear.driver, self.gear.engine.layers
        for exit in driver.stops:
            if not len(self.rows):
                break
            # 2. Ask. Layers that run take K and V of the rows that have left along: a cache has no holes.
            self._run_to(exit)
            leaving = driver.at(exit, self.hidden, self.before, self.rows)[self.rows]
            # 3. Leave.
            if leaving.any():
                self._leave(exit, leaving)
        if len(self.rows):
            self._run_to(layers)
            logits = read_final(self.gear, self.hidden)
            self._keep_logits(self.rows, logits)
            driver.end(logits, self.hidden, self.before, self.rows)
        else:
            # 4. Fill K and V of the layers that no row has run.
            if self.fills:
                states = self.left.given(self.depth, layers)
                self.gear.sequences.write(states, self.inputs, self.depth, layers)
            driver.end()
        assert self._logits is not None  # some row is not over, and every such row has left
        return self._logits

    def _run_to(self, exit: int) -> None:
        self.before = None
        if self.gear.driver.reader.wants_before(exit):
            self.before = self.hidden = self._run_layers(exit - 1)
        self.hidden = self._run_layers(exit)

    def _run_layers(self, last: int) -> Tensor:
        sequences, first, self.depth = self.gear.sequences, self.depth, last
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
        self._keep_logits(gone, self.gear.driver.logits(exit, self.hidden, chosen))
        self.left.leave(exit, self._index(gone), self.hidden[chosen])
        self.hidden, self.rows = self.hidden[self._index(stays)], self.rows[stays]
        self.gear.driver.reader.keep_rows(stays)

    def _keep_logits(self, rows: NDArray[np.int64], logits: Tensor) -> None:
        if self._logits is None:
            shape = (self.gear.sequences.batch, logits.shape[-1])
            self._logits = torch.zeros(shape, dtype=torch.float32, device=logits.device)
        self._logits[self._index(rows)] = logits.float()

    def _index(self, rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(rows).to(self.inputs.hidden.device)


class Propagate(Strategy, of=PROPAGATE):
    """K and V of skipped layers come from the exit's hidden state; CALM (arXiv 2207.07061, section 3.3).

    fills: whether layers that a token skips get K and V of it at all.

    Exact: a token that nobody before left early. Approximate: every token after one that left, in all layers
    that were skipped, since the hidden state there is another than the one that the layers would have made.
    A layer with a recurrent state cannot be projected: it runs, on the exit's hidden state, and is counted.
    """

    fills: ClassVar[bool] = True

    def advance(self, tokens: Tensor) -> Advance:
        """Feed the last tokens, int64 [batch, 1], and predict one more for each row."""
        gear = self.gear
        # 1. Feed.
        inputs = feed(gear, tokens)
        if gear.options.batching == "rebatch" and gear.sequences.batch > 1:
            logits, exits = RowsApart(self, inputs).run(), gear.driver.own
            return choose(gear, logits, exits, np.where(gear.driver.finished, 0, exits))
        # 2. Ask at each exit on the way down, until every row wants to leave.
        step = descend(gear, inputs)
        # 3. Leave: what is read out here is the output.
        logits = exit_logits(gear, step)
        # 4. Fill K and V of the layers that were skipped: later tokens look for them.
        if self.fills:
            states = self.given(step.exit, step.hidden)
            gear.sequences.write(states, step.inputs, step.exit, gear.engine.layers)
        return choose(gear, logits, step.exit)

    def given(self, exit: int, hidden: Tensor) -> States:
        """What the layers after an exit are given where all rows left, with states [batch, 1, hidden]."""
        return hidden

    def left_states(self, hidden: Tensor) -> LeftStates:
        """The same where rows leave one by one. hidden: before the first layer [batch, 1, hidden]."""
        return LeftStates(hidden)
