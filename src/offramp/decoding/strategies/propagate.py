"""CALM's strategy: K and V of skipped layers are projected from the hidden state that left."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor

from offramp.decoding.engine.sequences import States
from offramp.decoding.strategies.descent import choose, descend, feed, land
from offramp.decoding.strategies.rebatch import LeftStates, advance_apart
from offramp.decoding.strategies.strategy import Advance, Strategy


class Propagate(Strategy):
    """K and V of skipped layers come from the exit's hidden state; CALM (arXiv 2207.07061, section 3.3).

    Exact: a token that nobody before left early. Approximate: every token after one that left, in all layers
    that were skipped, since the hidden state there is another than the one that the layers would have made.
    A layer with a recurrent state cannot be projected: it runs, on the exit's hidden state, and is counted.
    """

    name: ClassVar[str] = "propagate"
    exact: ClassVar[str] = (
        "Exits give their own outputs exactly; deeper layers of later tokens see K and V projected from the "
        "hidden state of the exit, an approximation."
    )

    def advance(self, tokens: Tensor) -> Advance:
        """Feed the last tokens, int64 [batch, 1], and predict one more for each row."""
        work = self.work
        if work.options.batching == "rebatch" and work.sequences.batch > 1:
            return advance_apart(work, feed(work, tokens), left=self.left_states)
        landing = descend(work, feed(work, tokens))
        logits = land(work, landing)
        given = self.given(landing.exit, landing.hidden)
        work.sequences.write(given, landing.inputs, landing.exit, work.engine.layers)
        return choose(work, logits, landing.exit)

    def given(self, exit: int, hidden: Tensor) -> States:
        """What the layers after an exit are given where all rows left, with states [batch, 1, hidden]."""
        return hidden

    def left_states(self, hidden: Tensor) -> LeftStates:
        """The same where rows leave one by one. hidden: before the first layer [batch, 1, hidden]."""
        return LeftStates(hidden)
