"""Policies around another one: without shallow checks, never deeper than before, behind a cheaper check."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.kit.rules import Must
from offramp.policies.parameter_types import Exit, Inner, Limit, SignalName
from offramp.policies.policy import Decider, ExitPolicy, FactsAtExit, Rows, Tokens, check_exits
from offramp.policies.signals import OPENING_FACT, SIGNALS, Signal, is_opened


def _as_deciding(name: str) -> Any:
    """The same property of the policy that decides."""
    return property(lambda policy: getattr(policy.deciding, name))


class Delegating(ExitPolicy):
    """A policy that remembers and reads what another one does, `deciding`."""

    @property
    @abstractmethod
    def deciding(self) -> ExitPolicy:
        """The policy that decides."""

    remembers = _as_deciding("remembers")
    short_list = _as_deciding("short_list")
    short_head = _as_deciding("short_head")
    final_facts = _as_deciding("final_facts")
    document_facts = _as_deciding("document_facts")

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """As the policy that decides."""
        return self.deciding.needs(layers)

    def leaves_at(self, layers: int) -> tuple[int, ...]:
        """Where the policy that decides lets go, of the exits that are asked."""
        needs = self.needs(layers)
        return tuple(exit for exit in self.deciding.leaves_at(layers) if exit in needs)

    def decider(self, layers: int, streams: int) -> Decider:
        """As the policy that decides."""
        return self.deciding.decider(layers, streams)


class Around(Delegating):
    """A policy around another one, its field `policy`."""

    policy: Inner
    """the policy that decides otherwise, in brackets"""

    @property
    def deciding(self) -> ExitPolicy:
        """The inner policy."""
        return self.policy

    full_depth = _as_deciding("full_depth")
    tasks = _as_deciding("tasks")

    def for_task(self, task: str | None) -> Self:
        """The same around the inner policy for that workload class."""
        return self.around(self.policy.for_task(task))

    def around(self, policy: ExitPolicy) -> Self:
        """The same around another policy."""
        return replace(self, policy=policy)  # type: ignore[type-var]


@dataclass(frozen=True)
class Minimum(Around):
    """Another policy without its checks below one exit.

    A floor under early exit, since the first layers of a language model predict little: SkipDecode (arXiv
    2307.02628, section 3) runs a minimum of layers for every token.
    """

    exit: Exit
    """the shallowest exit that is checked"""
    policy: Inner

    kind: ClassVar[str] = "minimum"

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """What the other policy reads from that exit on.

        Raises PolicyError if nothing is left of it, or if a check is dropped that a later one compares with.
        """
        check_exits((self.exit,), layers)
        inner = self.policy.needs(layers)
        kept = {exit: facts for exit, facts in inner.items() if exit >= self.exit}
        dropped = {fact for exit, facts in inner.items() if exit < self.exit for fact in facts}
        if inner and not kept:
            raise PolicyError(
                f"the minimum exit {self.exit} drops every check of {self.policy}", fix="lower the minimum"
            )
        broken = [fact for facts in kept.values() for fact in facts if is_opened(fact)]
        if broken and dropped & {OPENING_FACT, broken[0]}:
            raise PolicyError(
                f"{broken[0]} compares with a check below the minimum exit {self.exit}",
                fix=f"give the policy within exits from {self.exit} on",
            )
        return kept


@dataclass(frozen=True)
class NoDeeper(Around):
    """Another policy, but a token leaves at the latest where the token before it left.

    NoDeeper depth as in SkipDecode (arXiv 2307.02628, section 3): later tokens never need deeper K,V than
    earlier ones have, so nothing has to be repaired. A token that reaches its predecessor's exit is still
    checked there, and leaves whatever the check says.
    """

    policy: Inner

    kind: ClassVar[str] = "monotone"
    never_deepens: ClassVar[bool] = True

    @property
    def remembers(self) -> bool:
        """It remembers where the token before left."""
        return True

    def decider(self, layers: int, streams: int) -> Decider:
        """The inner policy's, held to the exits of the tokens before."""
        return _NoDeeper(self.policy.decider(layers, streams), layers, streams)


class _NoDeeper(Decider):
    """Remembers of each stream the exit of the token before."""

    def __init__(self, inner: Decider, layers: int, streams: int) -> None:
        self.inner = inner
        self.deepest = np.full(streams, layers, dtype=np.int64)

    def begin(self, tokens: Tokens) -> None:
        super().begin(tokens)
        self.inner.begin(tokens)

    def checks(self, exit: int) -> Rows:
        return self.inner.checks(exit) | (exit >= self.deepest)

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        own = self.inner.checks(exit) & self.inner.decide(exit, facts)
        return own | (exit >= self.deepest)

    def end(self, exits: NDArray[np.int64], final: FactsAtExit) -> None:
        self.inner.end(exits, final)
        self.deepest = np.minimum(self.deepest, exits)


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
