"""The kinds of exit policy: never, static, threshold, and those of plug-ins."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.policies.policy import ExitPolicy, Parameter, ParameterError, check_exits, columns_of
from offramp.policies.signals import SIGNALS, find_signal, suggest
from offramp.scoring.documents import fact_of
from offramp.tracing.trace import Trace

ENTRY_POINTS = "offramp.policies"

Exits = tuple[int, ...]


def read_exit(text: str) -> int:
    """An exit number of at least 1."""
    if not (text.isascii() and text.isdigit()) or int(text) < 1:
        raise ParameterError(f"{text!r} is no exit", fix="write a layer number, 1 or more")
    return int(text)


def read_exits(text: str) -> Exits | Literal["all"]:
    """Ascending exits joined by "+", or "all"."""
    if text == "all":
        return "all"
    exits: list[int] = []
    offset = 0
    for item in text.split("+"):
        if not (item.isascii() and item.isdigit()) or int(item) < 1:
            raise ParameterError(
                f"{item!r} is no exit",
                fix='write layer numbers joined by "+", as in 10+15+20, or all',
                offset=offset,
            )
        if exits and int(item) <= exits[-1]:
            raise ParameterError(
                f"exit {item} comes after exit {exits[-1]}",
                fix="write each exit once, ascending",
                offset=offset,
            )
        exits.append(int(item))
        offset += len(item) + 1
    return tuple(exits)


def read_number(text: str) -> float:
    """A finite number."""
    try:
        value = float(text)
    except ValueError as error:
        raise ParameterError(f"{text!r} is no number", fix="write a number such as 0.9") from error
    if not math.isfinite(value):
        raise ParameterError(
            f"a threshold of {text} compares with nothing", fix="write a finite number such as 0.9"
        )
    return value


def read_signal(text: str) -> str:
    """The name of a registered signal."""
    if text not in SIGNALS:
        raise ParameterError(f"unknown signal {text!r}", fix=suggest(text, SIGNALS))
    return text


@dataclass(frozen=True)
class Never(ExitPolicy):
    """The full model: every token runs every layer, nothing is checked."""

    kind: ClassVar[str] = "never"
    parameters: ClassVar[tuple[Parameter, ...]] = ()

    @property
    def facts_needed(self) -> tuple[str, ...]:
        """None."""
        return ()

    def checked_exits(self, layers: int) -> Exits:
        """None."""
        return ()

    def decide(self, exit: int, facts: Mapping[str, float]) -> bool:
        """False: only exit L ends a token."""
        return False

    def choose(self, trace: Trace) -> NDArray[np.int64]:
        """Exit L for every token."""
        return np.full(trace.token_count, trace.layers, dtype=np.int64)


@dataclass(frozen=True)
class StaticExit(ExitPolicy):
    """Every token leaves at one exit; nothing is checked, so the exit's head replaces the final one."""

    exit: int

    kind: ClassVar[str] = "static"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("exit", read_exit, "the layer after which to stop"),
    )

    @property
    def facts_needed(self) -> tuple[str, ...]:
        """None."""
        return ()

    def checked_exits(self, layers: int) -> Exits:
        """None, once the exit is known to be one of the model's."""
        check_exits((self.exit,), layers)
        return ()

    def decide(self, exit: int, facts: Mapping[str, float]) -> bool:
        """True from the static exit on."""
        return exit >= self.exit

    def choose(self, trace: Trace) -> NDArray[np.int64]:
        """The static exit for every token."""
        columns_of(trace, (self.exit,))
        return np.full(trace.token_count, self.exit, dtype=np.int64)


@dataclass(frozen=True)
class Threshold(ExitPolicy):
    """A token leaves at the first checked exit whose signal passes one threshold.

    Confidence-thresholded early exit as in BranchyNet (arXiv 1709.01686) and CALM (arXiv 2207.07061), with
    one threshold for all exits and positions.
    """

    signal: str
    value: float
    exits: Exits | Literal["all"]

    kind: ClassVar[str] = "threshold"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("signal", read_signal, "the confidence signal: " + ", ".join(SIGNALS)),
        Parameter("value", read_number, "the threshold, in the signal's unit"),
        Parameter("exits", read_exits, 'the exits to check, as in 10+15+20, or "all" below the last layer'),
    )

    def __post_init__(self) -> None:
        """Refuse what the grammar would refuse, for policies built in Python."""
        find_signal(self.signal)
        if not math.isfinite(self.value):
            raise PolicyError(
                f"a threshold of {self.value} compares with nothing", fix="give a finite number"
            )
        if self.exits != "all" and (not self.exits or list(self.exits) != sorted(set(self.exits))):
            raise PolicyError(f"{self.exits} are no exits to check", fix="give each exit once, ascending")

    @property
    def facts_needed(self) -> tuple[str, ...]:
        """The signal's fact."""
        return (SIGNALS[self.signal].fact,)

    def checked_exits(self, layers: int) -> Exits:
        """The exits it probes. Raises PolicyError for exit L, which ends a token anyway, or beyond."""
        if self.exits == "all":
            return tuple(range(1, layers))
        check_exits(self.exits, layers)
        if layers in self.exits:
            raise PolicyError(
                f"exit {layers} is the full model: a check there can save nothing",
                fix=f"choose exits from 1 to {layers - 1}",
            )
        return self.exits

    def decide(self, exit: int, facts: Mapping[str, float]) -> bool:
        """True at a checked exit whose signal passes the threshold."""
        if self.exits != "all" and exit not in self.exits:
            return False
        signal = SIGNALS[self.signal]
        return signal.fires(facts[signal.fact], self.value)

    def choose(self, trace: Trace) -> NDArray[np.int64]:
        """The first checked exit that passes, else L; a NaN is refused with its document and exit."""
        columns = columns_of(trace, self.checked_exits(trace.layers))
        signal = SIGNALS[self.signal]
        chosen = np.full(trace.token_count, trace.layers, dtype=np.int64)
        fact = fact_of(trace, signal.fact)
        # The threshold stays float64: as a Python float numpy would round it to the fact's float32.
        threshold = np.float64(self.value)
        for column in columns[::-1]:
            values = fact[:, column]
            check_numbers(trace, signal.fact, values, int(trace.exits[column]))
            fires = values >= threshold if signal.exit_when == "at least" else values <= threshold
            chosen[fires] = trace.exits[column]
        return chosen


def check_numbers(
    trace: Trace, fact: str, values: NDArray[np.float32] | NDArray[np.int32], exit: int
) -> None:
    """Raise PolicyError if a fact of one exit, [tokens], holds a NaN, with the document's name."""
    broken = np.flatnonzero(np.isnan(values))
    if broken.size:
        document = trace.documents[int(trace.document[broken[0]])].id
        raise PolicyError(
            f"{fact} is not a number for {broken.size} tokens at exit {exit}",
            where=f"{document}, row {int(broken[0])} of {trace.folder or 'the trace'}",
            fix="trace the model again; a document with a broken logit should have been left out",
        )


BUILT_IN: tuple[type[ExitPolicy], ...] = (Never, StaticExit, Threshold)


@cache
def policy_kinds() -> dict[str, type[ExitPolicy]]:
    """Policy classes by kind: the built-in ones, then those of installed plug-ins (group "offramp.policies").

    Raises PolicyError for a plug-in that is no ExitPolicy class or takes the name of another kind.
    """
    kinds = {policy.kind: policy for policy in BUILT_IN}
    for point in entry_points(group=ENTRY_POINTS):
        policy = point.load()
        if not (isinstance(policy, type) and issubclass(policy, ExitPolicy)):
            raise PolicyError(
                f"the plug-in {point.name!r} is no exit policy",
                where=point.value,
                fix="let the entry point name a subclass of offramp.policies.policy.ExitPolicy",
            )
        if policy.kind in kinds:
            raise PolicyError(
                f"two policies are called {policy.kind!r}",
                where=point.value,
                fix="rename or remove the plug-in",
            )
        kinds[policy.kind] = policy
    return kinds
