"""An exit policy: the one object that decides where each token leaves, in replay and in decoding."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.tracing.trace import Trace


class ParameterError(PolicyError):
    """A parameter text that does not fit; `offset` counts the characters before the one at fault."""

    def __init__(self, what: str, *, fix: str, offset: int = 0) -> None:
        self.offset = offset
        super().__init__(what, fix=fix)


@dataclass(frozen=True)
class Parameter:
    """One parameter of a policy kind in the policy grammar.

    read: from its text to the value; raises ParameterError for a text that does not fit.
    meaning: one line for lists and error messages.
    """

    name: str
    read: Callable[[str], Any]
    meaning: str


class ExitPolicy(ABC):
    """Decides, exit by exit from shallow to deep, whether a token leaves. At exit L every token leaves.

    A subclass is a frozen dataclass whose fields are its parameters, in order. Values are texts, numbers,
    or tuples of integers, so that they survive text and JSON.
    """

    kind: ClassVar[str]
    parameters: ClassVar[tuple[Parameter, ...]]

    @property
    @abstractmethod
    def facts_needed(self) -> tuple[str, ...]:
        """The facts that `decide` reads at a checked exit."""

    @abstractmethod
    def checked_exits(self, layers: int) -> tuple[int, ...]:
        """The exits, ascending and below L = `layers`, where a probe is made and charged.

        Raises PolicyError if the policy does not fit a model of so many layers.
        """

    @abstractmethod
    def decide(self, exit: int, facts: Mapping[str, float]) -> bool:
        """Whether one token leaves at this exit, from the facts of this exit alone."""

    @abstractmethod
    def choose(self, trace: Trace) -> NDArray[np.int64]:
        """The exit at which each token leaves: int64 [tokens], the same as asking `decide` exit by exit.

        Raises PolicyError if the policy does not fit the trace.
        """

    def values(self) -> dict[str, Any]:
        """Parameter values by name, as JSON holds them (tuples become lists)."""
        fields = {parameter.name: getattr(self, parameter.name) for parameter in self.parameters}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}

    def __str__(self) -> str:
        """The policy's text, which `parse_policy` reads back."""
        settings = ",".join(f"{name}={text_of(value)}" for name, value in self.values().items())
        return f"{self.kind}:{settings}" if settings else self.kind


def text_of(value: Any) -> str:
    """A parameter value in the policy grammar: numbers in their shortest exact form, lists joined by "+"."""
    if isinstance(value, list | tuple):
        return "+".join(text_of(item) for item in value)
    return value if isinstance(value, str) else repr(value)


def check_exits(exits: tuple[int, ...], layers: int) -> None:
    """Raise PolicyError unless every exit is one of the model's exits 1..L."""
    beyond = [exit for exit in exits if not 1 <= exit <= layers]
    if beyond:
        raise PolicyError(
            f"exit {beyond[0]} is beyond the model, which has {layers} layers",
            fix=f"choose exits from 1 to {layers}",
        )


def columns_of(trace: Trace, exits: tuple[int, ...]) -> NDArray[np.int64]:
    """The trace's columns that hold these exits: int64 [exits].

    Raises PolicyError for an exit that the model lacks, or that was not traced (with the option to do so).
    """
    check_exits(exits, trace.layers)
    traced = [int(exit) for exit in trace.exits]
    untraced = [exit for exit in exits if exit not in traced]
    if untraced:
        together = ",".join(str(exit) for exit in sorted({*traced, *exits}))
        named = ", ".join(str(exit) for exit in untraced[:8]) + (" ..." if len(untraced) > 8 else "")
        raise PolicyError(
            f"exit {named} was not traced",
            where=str(trace.folder or "the trace"),
            fix=f"trace again with --exits {together}",
        )
    return np.searchsorted(trace.exits, np.array(exits, dtype=np.int64)).astype(np.int64)
