"""A policy that is asked only about tokens that a cheap check at an earlier exit lets through."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.kit.rules import Must
from offramp.policies.parameters import Exit, Inner, Limit, SignalName
from offramp.policies.policy import Decider, FactsAtExit, Rows, Tokens, check_exits
from offramp.policies.rules.around import Around
from offramp.policies.signals import SIGNALS, Signal


@dataclass(frozen=True)
class Filtered(Around):
    """Another policy, asked only about tokens that one cheap check lets through.

    An exit's own probability tells best who may leave, and costs a head, a lens and what stands behind it for
    every token that it is asked about. A classifier of the hidden state a few layers before costs next to
    nothing and knows already of most tokens that they will not leave: a cascade of checks, each dearer and
    surer than the one before (Viola and Jones, CVPR 2001, section 4). What is filtered out runs to exit L
    unprobed.

    """

    signal: Annotated[
        SignalName,
        Must(
            lambda name: not SIGNALS[name].opens,
            "one that reads a single exit",
            "choose one such as correctness",
        ),
    ]
    """the confidence signal of the check"""
    value: Limit
    """the check's threshold, in the signal's unit"""
    exit: Exit
    """the exit of that check, before those of the policy"""
    policy: Inner

    kind: ClassVar[str] = "filtered"

    @property
    def filter(self) -> Signal:
        """The signal of the check."""
        return SIGNALS[self.signal]

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """What the check reads, and what the other policy does.

        Raises PolicyError if that asks at the same exit or before: there is nothing to spare it then.
        """
        check_exits((self.exit,), layers)
        inner = self.policy.needs(layers)
        early = [exit for exit in inner if exit <= self.exit]
        if early:
            raise PolicyError(
                f"{self.policy} asks at exit {early[0]}, and the check at exit {self.exit} comes before",
                where=str(self),
                fix="give the check an exit before those of the policy",
            )
        return {self.exit: (self.filter.fact,), **inner}

    def decider(self, layers: int, streams: int) -> Decider:
        """The other policy's, asked about what the check let through."""
        return _Filter(self, self.policy.decider(layers, streams))


class _Filter(Decider):
    """Knows of each stream whether its token was let through."""

    def __init__(self, policy: Filtered, inner: Decider) -> None:
        self.signal, self.value, self.exit = policy.filter, policy.value, policy.exit
        self.inner = inner

    def begin(self, tokens: Tokens) -> None:
        super().begin(tokens)
        self.inner.begin(tokens)
        # All, where a policy around this one drops the check.
        self.through = np.ones(self.streams, dtype=np.bool_)

    def checks(self, exit: int) -> Rows:
        if exit == self.exit:
            return np.ones(self.streams, dtype=np.bool_)
        return self.through & self.inner.checks(exit)

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        if exit == self.exit:
            self.through = self.signal.fires(facts[self.signal.fact], self.value)
            return np.zeros(self.streams, dtype=np.bool_)
        return self.through & self.inner.decide(exit, facts)

    def end(self, exits: NDArray[np.int64], final: FactsAtExit) -> None:
        self.inner.end(exits, final)
