"""What a class that others wrote is held to: the annotated answers of a class or protocol, at every call."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Mapping
from types import FunctionType
from typing import Any

from offramp.errors import InputError, OfframpError
from offramp.kit.arguments import evaluated, settled
from offramp.plug_ins import FIX, asking, is_foreign, unfit

Fit = Callable[..., Any]
"""Given an object, a member's name, its answer and what it was asked with: the answer to go on with."""


def hold(
    kind: type,
    contract: type,
    what: Callable[[Any], str],
    error: type[OfframpError] = InputError,
    fix: str = FIX,
    fit: Fit = lambda thing, name, answer, *given, **named: answer,
) -> None:
    """Hold what others wrote of a class to its contract, at every call: `asking`, and the annotated answers.

    contract: the class or protocol whose methods and properties they are. what: an object is, in words. fit:
    raises for what else is wrong with an answer.
    """

    def held(name: str, found: Any, said: str) -> Any:
        is_property = isinstance(vars(contract)[name], property)
        hint = _hint(contract, said)

        @functools.wraps(_function(found))
        def call(self: Any, *given: Any, **named: Any) -> Any:
            with asking(self, what(self), error):
                answer = found.__get__(self, type(self))
                answer = answer if is_property else answer(*given, **named)
                try:
                    answer = settled(name, answer, hint, said, error)
                except error:
                    wrong = f"{what(self)}: {name} gives {answer!r}, not {said}"
                    raise unfit(self, wrong, error, fix) from None
                return fit(self, name, answer, *given, **named)

        call.held = True  # type: ignore[attr-defined]
        return property(call) if is_property else call

    for name, said in _answers(contract).items():
        home = next((base for base in kind.__mro__ if name in vars(base)), contract)
        found = vars(home).get(name)
        if is_foreign(home) and hasattr(found, "__get__") and not hasattr(_function(found), "held"):
            setattr(kind, name, held(name, found, said))


@functools.cache
def _answers(contract: type) -> Mapping[str, str]:
    """The annotations of what the members of a contract answer, by name."""
    members = {name: _function(member) for name, member in vars(contract).items() if name != "__post_init__"}
    return {
        name: member.__annotations__["return"]
        for name, member in members.items()
        if isinstance(member, FunctionType) and "return" in member.__annotations__
    }


def _function(member: Any) -> Any:
    return getattr(member, "fget", member)


def _hint(contract: type, said: str) -> Any:
    if "NDArray" in said:  # which is checked where it is used, with its size
        return Any
    return evaluated(said, vars(sys.modules[contract.__module__]))
