"""SkipDecode's strategy: no token goes deeper than the one before it, so nothing has to be left behind."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from offramp.decoding.engine.sequences import PositionsMissing
from offramp.decoding.strategies.propagate import advance_apart, choose, descend, exit_logits, feed
from offramp.decoding.strategies.strategy import Advance, Strategy, Work
from offramp.policies.kv import MONOTONE, goes_deeper


class Monotone(Strategy, of=MONOTONE):
    """Nothing is left for skipped layers: no later token runs them; SkipDecode (arXiv 2307.02628, section 3).

    Exact: every layer that runs finds the K and V of all tokens before, as the full model would have made
    them from the same hidden states. The prompt ran all layers. Layers above the last exit hold fewer
    positions than those below, and are never asked again. Where rows of a batch leave one by one, the layers
    that others still run get K and V of those that left as well, for a cache has no holes.
    """

    def __init__(self, work: Work) -> None:
        super().__init__(work)
        self._deepest = np.full(work.sequences.batch, work.engine.layers, dtype=np.int64)

    def advance(self, tokens: Tensor) -> Advance:
        """Feed the last tokens, int64 [batch, 1], and predict one more for each row."""
        driver = self.work.driver
        try:
            advance = self._advance(tokens)
        except PositionsMissing as error:
            raise goes_deeper(driver.policy) from error
        deeper = np.flatnonzero((driver.own > self._deepest) & ~driver.finished)
        if deeper.size:
            row = int(deeper[0])
            example = f": one leaves at exit {self._deepest[row]}, a later one at {driver.own[row]}"
            raise goes_deeper(driver.policy, example)
        self._deepest = driver.own.copy()
        return advance

    def _advance(self, tokens: Tensor) -> Advance:
        work = self.work
        inputs = feed(work, tokens)
        if work.options.batching == "rebatch" and work.sequences.batch > 1:
            return advance_apart(work, inputs, repair=False)
        step = descend(work, inputs)
        return choose(work, exit_logits(work, step), step.exit)
