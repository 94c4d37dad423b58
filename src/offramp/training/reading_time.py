"""How many tokens a training reads in its minutes: by the pace of this machine on the first of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

from offramp.errors import InputError
from offramp.kit.defaults import TRAINING_ROWS
from offramp.models.model import Model
from offramp.tracing.fitting.fit import CLASSIFIER_TOKENS
from offramp.tracing.fitting.readings import captured_states
from offramp.workloads.packing import Context

PILOT_TOKENS = 512
"""Read to learn the pace, at least."""
STEP_TOKENS = 512
"""Tokens are cut to a multiple of so many."""
FEWEST_TOKENS = 8 * TRAINING_ROWS
"""Of which something can be learned."""
READING_SHARE = 0.5
"""Of the minutes, that reading may take, and what is fitted on what was read; the rest is for steps."""
MAPS_PACE = 1.3
"""Of a token for K,V maps, in tokens for states: measured on smollm2, two exits (113 s beside 91 s)."""
READ_OUT, FITTED = 2.0, 0.15
"""At each exit of a token for classifiers: products with the head, and fitting, in tokens for states."""


@dataclass(frozen=True)
class ReadingTime:
    """Seconds of a token that is read for its states, and what else is read in such units.

    pace: seconds. exits: that are trained. head_share: the output head's products over those of all layers.
    maps, classifiers: whether there are any.
    """

    pace: float
    exits: int
    head_share: float
    maps: bool
    classifiers: bool

    @classmethod
    def of(cls, model: Model, pace: float, exits: int, *, maps: bool, classifiers: bool) -> ReadingTime:
        """Of a model that reads at a pace."""
        layers = max(1, sum(layer.active_parameters for layer in model.shape.layers))
        return cls(pace, exits, model.shape.head_parameters / layers, maps, classifiers)

    def afterwards(self, tokens: int) -> float:
        """Seconds for what goes with the exits of a training that read so many tokens."""
        judged = min(CLASSIFIER_TOKENS, tokens // 4) if self.classifiers else 0
        read_out = 1.0 + self.exits * (READ_OUT * self.head_share + FITTED)
        return self.pace * (MAPS_PACE * tokens * self.maps + read_out * judged)

    def all(self, tokens: int) -> float:
        """Seconds with the states themselves."""
        return self.pace * tokens + self.afterwards(tokens)

    def affordable(self, tokens: int, minutes: float) -> int:
        """So many of some tokens as may be read in these minutes.

        Raises InputError if these are not enough to learn from.
        """
        allowed = READING_SHARE * 60.0 * minutes
        if self.all(tokens) <= allowed:
            return tokens
        most = STEP_TOKENS * (tokens // STEP_TOKENS)
        for fewer in range(most, FEWEST_TOKENS - 1, -STEP_TOKENS):
            if self.all(fewer) <= allowed:
                return fewer
        needed = self.all(min(FEWEST_TOKENS, tokens)) / READING_SHARE / 60.0
        raise InputError(
            f"{minutes:g} minutes are too few: a token takes {self.pace:.2g} s to read, and "
            f"{min(FEWEST_TOKENS, tokens):,} with what is fitted on them half of {needed:.2g} minutes",
            where="minutes= (--minutes)",
            fix=f"give {needed + 0.01:.2f} minutes or more, or --steps; --no-kv-maps and --no-classifiers "
            "leave out what takes longest",
        )


def pace_of(model: Model, contexts: Sequence[Context], layers: Sequence[int]) -> float:
    """Seconds of a token that is read for its states at some layers, on the first contexts."""
    read, first = 0, []
    for context in contexts:
        first.append(context)
        read += context.rows
        if read >= PILOT_TOKENS:
            break
    started = time.perf_counter()
    for _ in captured_states(model, first, layers):
        pass
    return (time.perf_counter() - started) / max(1, read)
