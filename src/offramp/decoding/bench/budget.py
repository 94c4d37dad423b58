"""How long is timed: the limits of a measurement, and the seconds that it has spent."""

from __future__ import annotations

import time
from dataclasses import dataclass

from offramp.tuning.verdict import WORTH

BUDGET_SECONDS = 120.0


@dataclass(frozen=True)
class Limits:
    """When a measurement ends.

    seconds: of all of it, trials included, None for no limit; two visits are always made. rounds: how often
    each batch of prompts is decoded, at most, None for no limit. worth: the gain that matters, as a share.
    looks: whether it may end before the seconds are over, as soon as its questions are answered.
    """

    seconds: float | None = BUDGET_SECONDS
    rounds: int | None = None
    worth: float = WORTH
    looks: bool = True


class Budget:
    """Counts seconds from now on. seconds: that there are, None for as many as it takes."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self._began = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._began

    @property
    def used(self) -> float:
        """Share of the seconds that is spent; 0 without a limit, 1 at once if there are none."""
        if self.seconds is None:
            return 0.0
        return self.spent / self.seconds if self.seconds > 0.0 else 1.0

    def has(self, seconds: float) -> bool:
        """Whether so many more seconds are left."""
        return self.seconds is None or self.spent + seconds <= self.seconds
