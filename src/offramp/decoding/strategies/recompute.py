"""EE-LLM's strategy: layers that a token skipped run later, together with the next token that goes deeper."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from offramp.decoding.strategies.descent import choose, feed, read_final
from offramp.decoding.strategies.strategy import Advance, Request, Strategy, Work
from offramp.decoding.strategies.waiting import Waiting, descend, go_on
from offramp.errors import InputError


class Recompute(Strategy):
    """A token that leaves waits before the next layer until a later token runs it; EE-LLM (arXiv 2312.04916).

    Exact: every state of every layer that runs, so a token that reaches exit L gets the full model's logits
    (in float32 within the rounding of wider products, some 2e-6), and every exit's output is what that exit
    of the full model says on the same tokens. Approximate: only that an exit answers instead of exit L.
    Recurrent layers catch up one position at a time. Tokens that wait hold one hidden state each, and a
    deep token after many pays for all of them at once. In lockstep all rows wait alike.
    """

    name: ClassVar[str] = "recompute"
    exact: ClassVar[str] = (
        "All states are the full model's: tokens that reach the last exit get its logits, within rounding; "
        "the others get what their exit says."
    )

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._waiting = Waiting(work.sequences)

    @classmethod
    def check(cls, request: Request) -> None:
        """Raise InputError for rows that would not wait together."""
        refuse_rebatch(cls.name, request)

    def keep_rows(self, rows: Tensor) -> None:
        """Tokens of other rows no longer wait."""
        self._waiting.keep_rows(rows)

    def advance(self, tokens: Tensor) -> Advance:
        """Feed the last tokens, int64 [batch, 1], and predict one more for each row."""
        work, asking, layers = self.work, self.work.asking, self.work.engine.layers
        feed(work, tokens)
        stop = descend(work, self._waiting)
        if asking.running.any():
            stop = go_on(work, self._waiting, stop, layers)
            logits = read_final(work, stop.block.last)
            asking.end(logits, stop.block.last, stop.before)
        else:
            self._waiting.leave(stop.exit, stop.block)
            logits = asking.logits(stop.exit, stop.block.last)
            asking.end()
        return choose(work, logits, stop.exit)


def refuse_rebatch(name: str, request: Request) -> None:
    """Raise InputError for a batch whose rows leave one by one."""
    if request.batching == "rebatch" and request.batch > 1:
        raise InputError(
            f"{name!r} cannot decode a batch whose rows leave one by one",
            where='batching "rebatch"',
            fix='rows must wait for skipped layers together: choose batching "lockstep", or kv "propagate"',
        )
