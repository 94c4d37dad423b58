"""The threshold rules: a token leaves at the first checked exit whose signal passes a fixed threshold."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.policies.policy import Decider, ExitPolicy, FactsAtExit, Parameter, ParameterError, Rows
from offramp.policies.reading import (
    Exits,
    ExitsOrAll,
    exits_below,
    read_exit_list,
    read_exits,
    read_number,
    read_numbers,
    read_signal,
    require_ascending,
    require_threshold,
)
from offramp.policies.signals import OPENING_FACT, SIGNALS, Signal, find_signal

Limit = float | NDArray[np.float64]

SIGNAL = Parameter("signal", read_signal, "the confidence signal: " + ", ".join(SIGNALS))
VALUE = Parameter("value", read_number, "the threshold, in the signal's unit")
EXITS = Parameter("exits", read_exits, 'the exits to check, as in 10+15+20, or "all" below the last layer')


def signal_needs(signal: Signal, exits: Exits) -> dict[int, tuple[str, ...]]:
    """What a signal reads at each checked exit; the first may only be there to compare with.

    Raises PolicyError for a single exit of a signal that compares two.
    """
    if signal.opens and len(exits) == 1:
        raise PolicyError(
            f"{signal.name} compares two checks, and there is one exit: nothing would leave",
            fix="check an exit more, further up",
        )
    needs: dict[int, tuple[str, ...]] = dict.fromkeys(exits, (signal.fact,))
    if signal.opens and exits:
        needs[exits[0]] = (OPENING_FACT,)
    return needs


class Compares(Decider):
    """Leaves where the signal passes its limit; a check that only opens never lets a token leave."""

    def __init__(self, signal: Signal) -> None:
        self.signal = signal

    @abstractmethod
    def limit(self, exit: int) -> Limit:
        """The threshold of the current token at this exit: one for all streams, or [streams]."""

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        """Which streams leave at this exit: bool [streams]."""
        if self.signal.fact not in facts:
            return np.zeros(self.streams, dtype=np.bool_)
        return self.signal.fires(facts[self.signal.fact], self.limit(exit))


class _Fixed(Compares):
    """Compares with one threshold per exit."""

    def __init__(self, signal: Signal, limits: Mapping[int, float]) -> None:
        super().__init__(signal)
        self.limits = limits

    def limit(self, exit: int) -> Limit:
        return self.limits[exit]


@dataclass(frozen=True)
class Threshold(ExitPolicy):
    """A token leaves at the first checked exit whose signal passes one threshold.

    Confidence-thresholded early exit as in BranchyNet (arXiv 1709.01686, algorithm 1) and CALM (arXiv
    2207.07061, equation 1), with one threshold for all exits and positions.
    """

    signal: str
    value: float
    exits: ExitsOrAll

    kind: ClassVar[str] = "threshold"
    parameters: ClassVar[tuple[Parameter, ...]] = (SIGNAL, VALUE, EXITS)

    def __post_init__(self) -> None:
        """Refuse what the grammar would refuse, for policies built in Python."""
        require_threshold(find_signal(self.signal), self.value)
        require_ascending(self.exits)

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """The signal's fact at the exits it probes. Raises PolicyError for exit L or beyond."""
        return signal_needs(SIGNALS[self.signal], exits_below(self.exits, layers))

    def decider(self, layers: int, streams: int) -> Decider:
        """One that compares."""
        limits = dict.fromkeys(exits_below(self.exits, layers), self.value)
        return _Fixed(SIGNALS[self.signal], limits)


@dataclass(frozen=True)
class Thresholds(ExitPolicy):
    """A token leaves at the first checked exit whose signal passes that exit's own threshold.

    One threshold per exit as in BranchyNet (arXiv 1709.01686, algorithm 1). A signal that compares exits
    needs a value for its first exit too, which is not used: that check only opens.
    """

    signal: str
    values: tuple[float, ...]
    exits: Exits

    kind: ClassVar[str] = "thresholds"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        SIGNAL,
        Parameter("values", read_numbers, "the threshold of each exit, as in 0.9+0.8+0.7"),
        Parameter("exits", read_exit_list, "the exits to check, as in 10+15+20"),
    )

    def __post_init__(self) -> None:
        """Refuse what the grammar would refuse, for policies built in Python."""
        for value in self.values:
            require_threshold(find_signal(self.signal), value, "values")
        require_ascending(self.exits)
        if len(self.values) != len(self.exits):
            raise ParameterError(
                f"{len(self.values)} thresholds do not fit {len(self.exits)} exits",
                fix="give one threshold for each exit",
                parameter="values",
            )

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """The signal's fact at the exits it probes. Raises PolicyError for exit L or beyond."""
        return signal_needs(SIGNALS[self.signal], exits_below(self.exits, layers))

    def decider(self, layers: int, streams: int) -> Decider:
        """One that compares."""
        return _Fixed(SIGNALS[self.signal], dict(zip(self.exits, self.values, strict=True)))
