"""EE-LLM's strategy: layers that a token skipped run later, together with the next token that goes deeper."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.decoding.strategies.descent import choose, feed, read_final
from offramp.decoding.strategies.strategy import Advance, Strategy, Work
from offramp.decoding.strategies.waiting import Stop, Waiting, descend, go_on


class Recompute(Strategy):
    """A token that leaves waits before the next layer until a later token runs it; EE-LLM (arXiv 2312.04916).

    Exact: every state of every layer that runs, so a token that reaches exit L gets the full model's logits
    (in float32 within the rounding of wider products, some 2e-6), and every exit's output is what that exit
    of the full model says on the same tokens. Approximate: only that an exit answers instead of exit L.
    Recurrent layers catch up one position at a time. Tokens that wait hold one hidden state each, and a
    deep token after many pays for all of them at once. All rows of a batch run and wait alike, as deep as the
    deepest of them: in lockstep they answer there too, under "rebatch" each answers from its own exit, which
    gives every row what it would say alone and skips no more layers than lockstep does.
    """

    name: ClassVar[str] = "recompute"
    exact: ClassVar[str] = (
        "All states are the full model's: tokens that reach the last exit get its logits, within rounding; "
        "the others get what their exit says."
    )

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._waiting = Waiting(work.sequences)

    def keep_rows(self, rows: Tensor) -> None:
        """Tokens of other rows no longer wait."""
        self._waiting.keep_rows(rows)

    def advance(self, tokens: Tensor) -> Advance:
        """Feed the last tokens, int64 [batch, 1], and predict one more for each row."""
        work, driver, layers = self.work, self.work.driver, self.work.engine.layers
        feed(work, tokens)
        if work.options.batching == "rebatch" and work.sequences.batch > 1:
            return self._advance_apart()
        stop = descend(work, self._waiting)
        if driver.running.any():
            stop = go_on(work, self._waiting, stop, layers)
            logits = read_final(work, stop.block.last)
            driver.end(logits, stop.block.last, stop.before)
        else:
            self._waiting.leave(stop.exit, stop.block)
            logits = driver.logits(stop.exit, stop.block.last)
            driver.end()
        return choose(work, logits, stop.exit)

    def _advance_apart(self) -> Advance:
        """The same where each row answers from its own exit; a row that is over answers nothing."""
        work, driver, layers = self.work, self.work.driver, self.work.engine.layers
        rows: list[NDArray[np.int64]] = []
        answers: list[Tensor] = []

        def leave(stop: Stop, leaving: NDArray[np.bool_]) -> None:
            rows.append(np.flatnonzero(leaving))
            chosen = torch.from_numpy(leaving).to(stop.block.hidden.device)
            answers.append(driver.logits(stop.exit, stop.block.last, chosen).float())

        stop = descend(work, self._waiting, leave)
        if driver.running.any():
            stop = go_on(work, self._waiting, stop, layers)
            deep = np.flatnonzero(driver.running)
            hidden = stop.block.last[deep]
            rows.append(deep)
            answers.append(read_final(work, hidden).float())
            driver.end(answers[-1], hidden, None if stop.before is None else stop.before[deep], deep)
        else:
            self._waiting.leave(stop.exit, stop.block)
            driver.end()
        found = torch.cat(answers)
        logits = found.new_zeros((len(driver.own), found.shape[1]))
        logits[torch.from_numpy(np.concatenate(rows)).to(found.device)] = found
        choice = work.chooser.choose(work.tokens(), logits)
        exits = driver.own.copy()
        return Advance(choice.fed[:, None], choice.chosen[:, None], exits[:, None], choice.scores[:, None])
