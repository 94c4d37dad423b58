"""What a policy is held to wherever it is made and asked: its parameters, and others' answers.

Policies of others are asked in replay, in decoding and in rerun. What they get wrong is refused with their
name at the first answer; offramp's own answer to tests alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.kit import contract
from offramp.kit.arguments import settle_fields
from offramp.plug_ins import asking, unfit
from offramp.policies.policy import Decider, ExitPolicy, FactsAtExit, ParameterError, Rows, Tokens
from offramp.tracing.facts import DOCUMENT_FACTS, FACT_BY_NAME

FIX = "see offramp.policies.policy.ExitPolicy for the contract, and offramp.testing.check_policy"


class ContractError(PolicyError):
    """A policy of others answers what none may."""


def hold(kind: type[ExitPolicy]) -> None:
    """Let the parameters of a new kind of policy be settled before its own checks, and others' be held."""
    if "__post_init__" in vars(kind):
        setattr(kind, "__post_init__", _settled_first(vars(kind)["__post_init__"]))  # noqa: B010
    contract.hold(kind, ExitPolicy, _shown, ContractError, FIX, _fit)


def _shown(policy: ExitPolicy) -> str:
    return f"the policy {policy.kind}"


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


KNOWN = {"needs": FACT_BY_NAME, "final_facts": FACT_BY_NAME, "document_facts": DOCUMENT_FACTS}
"""The facts that a policy may name, by where it does."""


def _fit(policy: ExitPolicy, name: str, answer: Any, layers: int = 0, *others: Any, **named: Any) -> Any:
    """The answer of others' policy, with its decider held too. Raises ContractError for what none may be."""
    if name in ("needs", "leaves_at", "checked_exits"):
        exits = list(answer)
        if exits != sorted({*exits}) or any(not 1 <= exit < layers for exit in exits):
            raise broken(policy, f"the exits {exits} of its {name} do not ascend within 1 to {layers - 1}")
    facts = [fact for each in answer.values() for fact in each] if name == "needs" else answer
    unknown = [fact for fact in facts if fact not in KNOWN[name]] if name in KNOWN else []
    if unknown:
        raise broken(policy, f"its {name} has the unknown fact {unknown[0]!r}")
    if name == "__str__" and answer.partition(":")[0] != policy.kind:
        raise broken(policy, f"its text {answer!r} does not begin with its name")
    if name == "decider":
        leaves = policy.leaves_at(layers)
        if policy.full_depth and leaves:
            raise broken(policy, f"it says full_depth, and leaves at {list(leaves)}")
        return answer if isinstance(answer, HeldDecider) else HeldDecider(answer, policy)
    return answer


def require_claims(policy: ExitPolicy) -> None:
    """Ask others' policy for all that needs no model, so that what is wrong with it is said before any work.

    Raises ContractError.
    """
    for name, member in vars(ExitPolicy).items():
        if isinstance(member, property):
            getattr(policy, name)
    str(policy.for_task(None)), str(policy)


class HeldDecider(Decider):
    """Others' decider, whose answers are one truth for each stream; it cannot write into what it is given."""

    def __init__(self, inner: Decider, policy: ExitPolicy) -> None:
        self.inner = inner
        self.policy = policy
        self.what = _shown(policy)

    def begin(self, tokens: Tokens) -> None:
        """A new token of every stream."""
        super().begin(tokens)
        with asking(self.policy, self.what, PolicyError):
            self.inner.begin(Tokens(_unwritable(tokens.index), _all_unwritable(tokens.facts)))

    def checks(self, exit: int) -> Rows:
        """Which streams read the facts at this exit."""
        with asking(self.policy, self.what, PolicyError):
            answer = self.inner.checks(exit)
        return self._rows(answer)

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        """Which streams leave at this exit."""
        with asking(self.policy, self.what, PolicyError):
            try:
                answer = self.inner.decide(exit, _all_unwritable(facts))
            except KeyError as error:
                if error.args[0] in FACT_BY_NAME:
                    what = f"it reads {error}, which needs does not list there"
                    raise broken(self.policy, what) from error
                raise
        return self._rows(answer)

    def end(self, exits: NDArray[np.int64], final: FactsAtExit) -> None:
        """The exits taken."""
        with asking(self.policy, self.what, PolicyError):
            self.inner.end(_unwritable(exits), _all_unwritable(final))

    def _rows(self, found: Any) -> Rows:
        rows = np.asarray(found)
        if rows.dtype != np.bool_ or rows.shape != (self.streams,):
            shown = f"{rows.dtype} {list(rows.shape)}" if rows.ndim else repr(found)
            streams = "one stream" if self.streams == 1 else f"{self.streams} streams"
            raise broken(self.policy, f"it answers {shown} for {streams}, not bool [streams]")
        return rows


def _unwritable(values: NDArray[Any]) -> NDArray[Any]:
    """A copy in memory that nobody can write to: a view may be made writable again."""
    return np.ndarray(values.shape, values.dtype, buffer=values.tobytes())


def _all_unwritable(facts: FactsAtExit) -> FactsAtExit:
    return {name: _unwritable(values) for name, values in facts.items()}


def broken(policy: ExitPolicy, what: str) -> ContractError:
    """The error for a policy of others that answers what none may."""
    error = unfit(policy, f"{_shown(policy)}: {what}", ContractError, FIX)
    assert isinstance(error, ContractError)
    return error
