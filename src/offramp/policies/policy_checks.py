"""What a policy is held to wherever it is made and asked: its parameters, and others' answers.

Policies of others are asked in replay, in decoding and in rerun. What they get wrong is refused with their
name at the first answer; offramp's own answer to tests alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.kit.arguments import settle_fields, settled
from offramp.plug_ins import asking, is_foreign, unfit
from offramp.policies.policy import Decider, ExitPolicy, FactsAtExit, ParameterError, Rows, Tokens
from offramp.tracing.facts import FACT_BY_NAME

FIX = "see offramp.policies.policy.ExitPolicy for the contract, and offramp.testing.check_policy"


class ContractError(PolicyError):
    """A policy of others answers what none may."""


def hold(kind: type[ExitPolicy]) -> None:
    """Let the parameters of a new kind of policy be settled before its own checks, and others' be held."""
    holding: dict[str, Callable[..., Any]] = {"__post_init__": _settled_first}
    if is_foreign(kind):
        holding |= {"needs": _held_needs, "decider": _held_decider}
    for name, held in holding.items():
        if name in vars(kind):
            setattr(kind, name, held(vars(kind)[name]))


def settle(policy: ExitPolicy) -> None:
    """Let the parameters of a policy just made be what their annotations say. Raises ParameterError."""
    try:
        settle_fields(policy, PolicyError, where=str)
    except ParameterError:
        raise
    except PolicyError as error:
        raise ParameterError(error.what, fix=error.fix, parameter=error.where) from error


def _settled_first(check: Callable[[ExitPolicy], None]) -> Callable[[ExitPolicy], None]:
    @functools.wraps(check)
    def call(self: ExitPolicy) -> None:
        settle(self)
        check(self)

    return call


Needs = Mapping[int, tuple[str, ...]]


def _held_needs(needs: Callable[[ExitPolicy, int], Needs]) -> Callable[[ExitPolicy, int], Needs]:
    @functools.wraps(needs)
    def call(self: ExitPolicy, layers: int) -> Needs:
        layers = settled("layers", layers, int, "int")
        with asking(self, f"the policy {self.kind}", PolicyError):
            answer = needs(self, layers)
        try:
            held: Needs = settled("needs", answer, Mapping[int, tuple[str, ...]], "", ContractError)
        except ContractError:
            raise broken(self, f"it needs {answer!r}, not facts by exit") from None
        exits = list(held)
        if exits != sorted(exits) or any(not 1 <= exit < layers for exit in exits):
            raise broken(self, f"the exits {exits} that it needs do not ascend within 1 to {layers - 1}")
        return held

    return call


def _held_decider(
    decider: Callable[[ExitPolicy, int, int], Decider],
) -> Callable[[ExitPolicy, int, int], Decider]:
    @functools.wraps(decider)
    def call(self: ExitPolicy, layers: int, streams: int) -> Decider:
        with asking(self, f"the policy {self.kind}", PolicyError):
            answer = decider(self, layers, streams)
        if not isinstance(answer, Decider):
            raise broken(self, f"its decider is of type {type(answer).__name__}, not a Decider")
        return answer if isinstance(answer, HeldDecider) else HeldDecider(answer, self)

    return call


class HeldDecider(Decider):
    """Others' decider, whose answers are one truth for each stream."""

    def __init__(self, inner: Decider, policy: ExitPolicy) -> None:
        self.inner = inner
        self.policy = policy
        self.what = f"the policy {policy.kind}"

    def begin(self, tokens: Tokens) -> None:
        """A new token of every stream."""
        super().begin(tokens)
        with asking(self.policy, self.what, PolicyError):
            self.inner.begin(tokens)

    def checks(self, exit: int) -> Rows:
        """Which streams read the facts at this exit."""
        with asking(self.policy, self.what, PolicyError):
            answer = self.inner.checks(exit)
        return self._rows(answer)

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        """Which streams leave at this exit."""
        with asking(self.policy, self.what, PolicyError):
            try:
                answer = self.inner.decide(exit, facts)
            except KeyError as error:
                if error.args[0] in FACT_BY_NAME:
                    what = f"it reads {error}, which needs does not list there"
                    raise broken(self.policy, what) from error
                raise
        return self._rows(answer)

    def end(self, exits: NDArray[np.int64], final: FactsAtExit) -> None:
        """The exits taken."""
        with asking(self.policy, self.what, PolicyError):
            self.inner.end(exits, final)

    def _rows(self, found: Any) -> Rows:
        rows = np.asarray(found)
        if rows.dtype != np.bool_ or rows.shape != (self.streams,):
            shown = f"{rows.dtype} {list(rows.shape)}" if rows.ndim else repr(found)
            streams = "one stream" if self.streams == 1 else f"{self.streams} streams"
            raise broken(self.policy, f"it answers {shown} for {streams}, not bool [streams]")
        return rows


def broken(policy: ExitPolicy, what: str) -> ContractError:
    """The error for a policy of others that answers what none may."""
    error = unfit(policy, f"the policy {policy.kind}: {what}", ContractError, FIX)
    assert isinstance(error, ContractError)
    return error
