"""Rules on how deep a token may go: a minimum exit, monotone depth, and a depth by position."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.policies.policy import Decider, ExitPolicy, FactsAtExit, Parameter, Rows, Tokens, check_exits
from offramp.policies.reading import read_count, read_exit, read_nested, require_reachable, require_within
from offramp.policies.signals import OPENING_FACT, is_opened

POLICY = Parameter("policy", read_nested, "the policy that decides otherwise, in brackets")


class Around(ExitPolicy):
    """A policy around another one, its field `policy`, which says what it remembers and reads."""

    policy: ExitPolicy

    def __post_init__(self) -> None:
        """Refuse an oracle inside."""
        require_reachable((self.policy,), "policy")

    @property
    def remembers(self) -> bool:
        """As the inner policy."""
        return self.policy.remembers

    @property
    def short_list(self) -> bool:
        """As the inner policy."""
        return self.policy.short_list

    @property
    def short_head(self) -> bool:
        """As the inner policy."""
        return self.policy.short_head

    @property
    def full_depth(self) -> bool:
        """As the inner policy."""
        return self.policy.full_depth

    @property
    def final_facts(self) -> tuple[str, ...]:
        """As the inner policy."""
        return self.policy.final_facts

    @property
    def document_facts(self) -> tuple[str, ...]:
        """As the inner policy."""
        return self.policy.document_facts

    @property
    def tasks(self) -> tuple[str, ...]:
        """As the inner policy."""
        return self.policy.tasks

    def for_task(self, task: str | None) -> Self:
        """The same around the inner policy for that workload class."""
        fields = {parameter.name: getattr(self, parameter.name) for parameter in self.parameters}
        return type(self)(**{**fields, "policy": self.policy.for_task(task)})

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """As the inner policy."""
        return self.policy.needs(layers)

    def decider(self, layers: int, streams: int) -> Decider:
        """As the inner policy."""
        return self.policy.decider(layers, streams)


@dataclass(frozen=True)
class Minimum(Around):
    """Another policy without its checks below one exit.

    A floor under early exit, since the first layers of a language model predict little: SkipDecode (arXiv
    2307.02628, section 3) runs a minimum of layers for every token.
    """

    exit: int
    policy: ExitPolicy

    kind: ClassVar[str] = "minimum"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("exit", read_exit, "the shallowest exit that is checked"),
        POLICY,
    )

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
class Monotone(Around):
    """Another policy, but a token leaves at the latest where the token before it left.

    Monotone depth as in SkipDecode (arXiv 2307.02628, section 3): later tokens never need deeper K,V than
    earlier ones have, so nothing has to be repaired. A token that reaches its predecessor's exit is still
    checked there, and leaves whatever the check says.
    """

    policy: ExitPolicy

    kind: ClassVar[str] = "monotone"
    never_deepens: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (POLICY,)

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
class Schedule(ExitPolicy):
    """One exit for each position of the answer, falling linearly; nothing is checked.

    SkipDecode's own policy (arXiv 2307.02628, section 3): the token with t tokens before it in the answer
    leaves at first - (first - last) t / (length - 1), rounded up to a whole exit, and at `last` from position
    length - 1 on.
    """

    first: int
    last: int
    length: int

    kind: ClassVar[str] = "schedule"
    never_deepens: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("first", read_exit, "the exit of the answer's first token"),
        Parameter("last", read_exit, "the exit of its last token, no deeper"),
        Parameter("length", read_count, "tokens until the last exit is reached, 2 or more"),
    )

    def __post_init__(self) -> None:
        """Refuse a depth that rises."""
        require_within(self.last, 1, self.first, "last")
        require_within(self.length, 2, np.inf, "length")

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """Every exit that some position takes, without a fact. Raises PolicyError for exits beyond L."""
        check_exits((self.last, self.first), layers)
        falls = self.first - self.last
        # In steps of at most one exit a position none is passed over.
        exits = np.arange(self.last, self.first + 1)
        if self.length <= falls:
            exits = np.unique(self.exit_at(np.arange(self.length, dtype=np.int64)))
        return {int(exit): () for exit in exits if exit < layers}

    def decider(self, layers: int, streams: int) -> Decider:
        """One that leaves at the position's exit."""
        return _ByPosition(self)

    def exit_at(self, index: NDArray[np.int64]) -> NDArray[np.int64]:
        """The exit for so many tokens before: int64, the shape of `index`."""
        step = np.minimum(index, self.length - 1)
        return self.first - (self.first - self.last) * step // (self.length - 1)


class _ByPosition(Decider):
    """Knows each token's exit before its first layer."""

    def __init__(self, policy: Schedule) -> None:
        self.policy = policy
        self.exit = np.zeros(0, dtype=np.int64)

    def begin(self, tokens: Tokens) -> None:
        super().begin(tokens)
        self.exit = self.policy.exit_at(tokens.index)

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        return np.asarray(self.exit == exit)
