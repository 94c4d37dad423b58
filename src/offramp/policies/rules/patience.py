"""Patience rules: a token leaves once several consecutive checks say the same."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.kit.numbers import Count
from offramp.policies.parameter_types import ExitsOrAll, Limit, SignalName, exits_below
from offramp.policies.policy import Decider, ExitPolicy, FactsAtExit, Rows, Tokens
from offramp.policies.rules.threshold import signal_needs
from offramp.policies.signals import SIGNALS, Signal


def _require_enough(exits: tuple[int, ...], times: int, what: str, *, opens: bool) -> None:
    """Raise PolicyError unless there are enough exits for `times` of what is counted.

    opens: whether the first check only opens and counts for nothing.
    """
    needed = times + opens
    if len(exits) < needed:
        there = f"there is {len(exits)}" if len(exits) == 1 else f"there are {len(exits)}"
        raise PolicyError(
            f"{times} {what if times > 1 else what.removesuffix('s')} need{'s' if times == 1 else ''} at "
            f"least {needed} check{'s' if needed > 1 else ''}; {there}",
            fix="check more exits below the last layer, or lower times",
        )


@dataclass(frozen=True)
class Patience(ExitPolicy):
    """A token leaves once its most probable token has stayed the same for `times` checks in a row.

    PABEE (arXiv 2006.04152, section 3.1): a counter of consecutive checks whose prediction equals that of the
    check before, back to 0 when it changes; the first check only opens, so a token leaves at check
    `times` + 1 at the earliest. The prediction of a short list of tokens is far cheaper to probe.
    """

    times: Count
    """how many consecutive checks must say so"""
    exits: ExitsOrAll
    """the exits to check, as in 10+15+20, or "all" below the last layer"""
    fact: Literal["top1", "restricted_top1"] = "top1"
    """the prediction to compare: top1 of the full head, or restricted_top1 of a short list of tokens"""

    kind: ClassVar[str] = "patience"

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """The prediction at every exit. Raises PolicyError for exit L or beyond, or too few exits."""
        exits = exits_below(self.exits, layers)
        _require_enough(exits, self.times, "unchanged predictions", opens=True)
        return dict.fromkeys(exits, (self.fact,))

    def decider(self, layers: int, streams: int) -> Decider:
        """One that counts equal predictions."""
        return _CountsEqual(self.fact, self.times)


class _CountsEqual(Decider):
    """Remembers the prediction of the check before, and how often it has stayed the same."""

    def __init__(self, fact: str, times: int) -> None:
        self.fact = fact
        self.times = times
        self.before: NDArray[Any] | None = None
        self.streak = np.zeros(0, dtype=np.int64)

    def begin(self, tokens: Tokens) -> None:
        super().begin(tokens)
        self.before = None
        self.streak = np.zeros(self.streams, dtype=np.int64)

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        now = facts[self.fact]
        if self.before is not None:
            self.streak = np.where(now == self.before, self.streak + 1, 0)
        self.before = now.copy()
        return self.streak >= self.times


@dataclass(frozen=True)
class Sustained(ExitPolicy):
    """A token leaves once its signal has passed the threshold at `times` checks in a row.

    Patience as in PABEE (arXiv 2006.04152, section 3.1), counted on confidence instead of on the prediction;
    times = 1 is the plain threshold rule.
    """

    signal: SignalName
    """the confidence signal"""
    value: Limit
    """the threshold, in the signal's unit"""
    times: Count
    """how many consecutive checks must say so"""
    exits: ExitsOrAll
    """the exits to check, as in 10+15+20, or "all" below the last layer"""

    kind: ClassVar[str] = "sustained"

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """The signal's fact at the exits it probes. Raises PolicyError for exit L or beyond, or too few."""
        exits = exits_below(self.exits, layers)
        _require_enough(exits, self.times, "passed checks", opens=SIGNALS[self.signal].opens)
        return signal_needs(SIGNALS[self.signal], exits)

    def decider(self, layers: int, streams: int) -> Decider:
        """One that counts passed checks."""
        return _CountsPasses(SIGNALS[self.signal], self.value, self.times)


class _CountsPasses(Decider):
    """Remembers at how many checks in a row the signal has passed."""

    def __init__(self, signal: Signal, value: float, times: int) -> None:
        self.signal = signal
        self.value = value
        self.times = times
        self.streak = np.zeros(0, dtype=np.int64)

    def begin(self, tokens: Tokens) -> None:
        super().begin(tokens)
        self.streak = np.zeros(self.streams, dtype=np.int64)

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        if self.signal.fact in facts:
            passes = self.signal.fires(facts[self.signal.fact], self.value)
            self.streak = np.where(passes, self.streak + 1, 0)
        return self.streak >= self.times
