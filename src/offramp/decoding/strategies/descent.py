"""Running one token of every sequence down the layers, asking the policy on the way."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from offramp.decoding.engine.sequences import Inputs
from offramp.decoding.strategies.strategy import Advance, Work


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


def choose(work: Work, logits: Tensor, exit: int) -> Advance:
    """One new token per row from the logits of one exit."""
    choice = work.chooser.choose(work.tokens(), logits)
    exits = np.full((len(choice.chosen), 1), exit, dtype=np.int64)
    return Advance(choice.fed[:, None], choice.chosen[:, None], exits, choice.scores[:, None])
