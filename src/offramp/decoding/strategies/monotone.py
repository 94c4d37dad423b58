"""`monotone`: nothing is left for skipped layers, since no later token goes deeper."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
from torch import Tensor

from offramp.decoding.engine.sequences import PositionsMissing
from offramp.decoding.strategies.next_token import Advance
from offramp.decoding.strategies.propagate import Propagate
from offramp.decoding.strategies.strategy import Gear
from offramp.policies.kv import MONOTONE, goes_deeper


class Monotone(Propagate, of=MONOTONE):
    """Nothing is left for skipped layers: no later token runs them; SkipDecode (arXiv 2307.02628, section 3).

    Exact: every layer that runs finds the K and V of all tokens before, as the full model would have made
    them from the same hidden states. The prompt ran all layers. Layers above the last exit hold fewer
    positions than those below, and are never asked again. Where rows of a batch leave one by one, the layers
    that others still run get K and V of those that left as well, for a cache has no holes.
    """

    fills: ClassVar[bool] = False

    def __init__(self, gear: Gear) -> None:
        super().__init__(gear)
        self._deepest = np.full(gear.sequences.batch, gear.engine.layers, dtype=np.int64)

    def advance(self, tokens: Tensor) -> Advance:
        """Feed the last tokens, int64 [batch, 1], and predict one more for each row."""
        driver = self.gear.driver
        try:
            advance = super().advance(tokens)
        except PositionsMissing as error:
            raise goes_deeper(driver.policy) from error
        deeper = np.flatnonzero((driver.own > self._deepest) & ~driver.finished)
        if deeper.size:
            row = int(deeper[0])
            example = f": one leaves at exit {self._deepest[row]}, a later one at {driver.own[row]}"
            raise goes_deeper(driver.policy, example)
        self._deepest = driver.own.copy()
        return advance
