"""Policies that check nothing: the full model, one exit for all tokens or by position, and oracles."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.kit.numbers import Count
from offramp.kit.rules import Beside
from offramp.policies.parameter_types import Exit
from offramp.policies.policy import Decider, ExitPolicy, FactsAtExit, Rows, Tokens, check_exits
from offramp.scoring.components import first_match, saturation
from offramp.tracing.trace import Trace


class _AlwaysLeaves(Decider):
    """Leaves wherever it is asked."""

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        return np.ones(self.streams, dtype=np.bool_)


@dataclass(frozen=True)
class Never(ExitPolicy):
    """The full model: every token runs every layer, nothing is checked."""

    kind: ClassVar[str] = "never"
    never_deepens: ClassVar[bool] = True

    @property
    def full_depth(self) -> bool:
        """It is what it is for."""
        return True

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """It is asked nowhere."""
        return {}

    def decider(self, layers: int, streams: int) -> Decider:
        """One that is never asked."""
        return _AlwaysLeaves()


@dataclass(frozen=True)
class StaticExit(ExitPolicy):
    """Every token leaves at one exit; nothing is checked, so the exit's head replaces the final one."""

    exit: Exit
    """the layer after which to stop"""

    kind: ClassVar[str] = "static"
    never_deepens: ClassVar[bool] = True

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """Its exit, without a fact. Raises PolicyError if the model has no such exit."""
        check_exits((self.exit,), layers)
        return {self.exit: ()} if self.exit < layers else {}

    def decider(self, layers: int, streams: int) -> Decider:
        """One that leaves at the static exit."""
        return _AlwaysLeaves()


@dataclass(frozen=True)
class Schedule(ExitPolicy):
    """One exit for each position of the answer, falling linearly; nothing is checked.

    SkipDecode's own policy (arXiv 2307.02628, section 3): the token with t tokens before it in the answer
    leaves at first - (first - last) t / (length - 1), rounded up to a whole exit, and at `last` from position
    length - 1 on.
    """

    first: Exit
    """the exit of the answer's first token"""
    last: Annotated[Exit, Beside(lambda last, given: last <= given.first, "no deeper than exit {first}")]
    """the exit of its last token, no deeper"""
    length: Annotated[Count, Ge(2)]
    """tokens until the last exit is reached, 2 or more"""

    kind: ClassVar[str] = "schedule"
    never_deepens: ClassVar[bool] = True

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


WhichOracle = Literal["first_match", "saturation"]
ORACLES: Mapping[WhichOracle, Callable[..., NDArray[Any]]] = {
    "first_match": first_match,
    "saturation": saturation,
}


@dataclass(frozen=True)
class Oracle(ExitPolicy):
    """Leaves where the exit agrees with the full model, which no decoder can know. It checks for free.

    first_match: the first traced exit that agrees; it overstates what can be saved, since a later exit may
    disagree again. saturation: the first from which on all agree, the saturation event of Geva et al.
    (arXiv 2203.14680).
    """

    which: WhichOracle
    """first_match or saturation"""

    kind: ClassVar[str] = "oracle"
    reachable: ClassVar[bool] = False

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """It is asked nowhere."""
        return {}

    def decider(self, layers: int, streams: int) -> Decider:
        """Raises PolicyError: no decoder can follow it."""
        raise PolicyError(
            "an oracle knows the full model's answer: it can be replayed, but nothing can decode with it",
            where=str(self),
            fix="choose a policy that decides from signals",
        )

    def exits_of(self, trace: Trace) -> NDArray[np.int64]:
        """The exits that it takes on a trace: int64 [tokens]."""
        columns = ORACLES[self.which](trace.agreement)
        return np.asarray(trace.exits[columns], dtype=np.int64)
