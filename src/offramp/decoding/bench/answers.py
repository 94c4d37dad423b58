"""What a timing answers: faster, slower, equivalent or unresolved, and when it has answered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from offramp.decoding.bench.results import Answer, Interval
from offramp.errors import InputError

ALPHA = 0.05
"""How often an answer may be wrong, over all looks together."""
PRECISE = 0.015
"""Half-width at which nothing more is timed: 1.5 %."""
LOOK_AT, LOOK_SPENDS = (0.35, 0.65), (0.1, 0.2)
"""Shares of the budget at which is looked, and what each look may spend of ALPHA; the last has the rest."""


def answer_of(ratio: Interval, worth: float) -> Answer:
    """What a ratio of seconds (the other's over its own) says at its interval's level.

    "equivalent" if the interval lies within a factor of 1 + worth either way: two one-sided tests (Schuirmann
    1987, J. Pharmacokinet. Biopharm. 15, 657), each at half of what the interval leaves out, so that answer
    and interval never contradict each other. Then "faster" or "slower" if it leaves out 1, else "unresolved".
    """
    low, high = ratio.low, ratio.high
    if low is None or high is None:
        return "unresolved"
    if low > 1.0 / (1.0 + worth) and high < 1.0 + worth:
        return "equivalent"
    return "faster" if low > 1.0 else "slower" if high < 1.0 else "unresolved"


def resolution_of(ratio: Interval) -> float | None:
    """The half-width of a ratio's interval, as a share of the ratio; None without an interval."""
    if ratio.low is None or ratio.high is None:
        return None
    return math.sqrt(ratio.high / ratio.low) - 1.0


def is_settled(ratio: Interval, worth: float) -> bool:
    """Whether a difference is shown that matters: the whole interval lies beyond 1 + worth, either way.

    What is equivalent, or only surely different, is timed on until it is precise.
    """
    low, high = ratio.low, ratio.high
    return low is not None and high is not None and (low > 1.0 + worth or high < 1.0 / (1.0 + worth))


def is_precise(ratio: Interval) -> bool:
    """Whether the half-width is small enough to stop."""
    found = resolution_of(ratio)
    return found is not None and found <= PRECISE


def check_worth(worth: float) -> None:
    """Raise InputError for a gain that cannot be worth it."""
    if not 0.0 < worth < 1.0:
        raise InputError(
            f"a worth of {worth:g} is no share", where="--worth", fix="give more than 0 and less than 1: 0.05"
        )


@dataclass
class Looks:
    """A fixed schedule of looks at a growing series of times, each at a level of its own.

    Looks are due when shares `at` of the budget are used up, whatever was timed, and the last one when the
    series ends. They spend `alpha` between them (Lan and DeMets 1983, Biometrika 70, 659), added up by the
    union bound, which holds however the looks depend on each other. The intervals are so repeated confidence
    intervals (Jennison and Turnbull 1989, J. R. Stat. Soc. B 51, 305): all of them hold together with
    probability 1 - alpha, and the series may stop at any look for any reason.
    """

    alpha: float = ALPHA
    at: Sequence[float] = LOOK_AT
    spends: Sequence[float] = LOOK_SPENDS
    made: int = 0
    spent: float = 0.0

    def due(self, used: float) -> float | None:
        """The level of the look that is due once a share of the budget is used, None if none is due.

        A look that was passed over gives what it could have spent to the last one.
        """
        passed = sum(used >= at for at in self.at)
        if passed <= self.made or used >= 1.0:
            return None
        self.made = passed
        spends = self.alpha * self.spends[passed - 1]
        self.spent += spends
        return 1.0 - spends

    def last(self) -> float:
        """The level of the last look: all that is left."""
        return 1.0 - (self.alpha - self.spent)
