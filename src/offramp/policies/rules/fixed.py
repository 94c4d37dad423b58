"""Policies that check nothing: the full model, and one exit for every token."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from offramp.policies.policy import Decider, ExitPolicy, FactsAtExit, Parameter, Rows, check_exits
from offramp.policies.reading import read_exit


class _AlwaysLeaves(Decider):
    """Leaves wherever it is asked."""

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        return np.ones(self.streams, dtype=np.bool_)


@dataclass(frozen=True)
class Never(ExitPolicy):
    """The full model: every token runs every layer, nothing is checked."""

    kind: ClassVar[str] = "never"
    never_deepens: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = ()

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

    exit: int

    kind: ClassVar[str] = "static"
    never_deepens: ClassVar[bool] = True
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("exit", read_exit, "the layer after which to stop"),
    )

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """Its exit, without a fact. Raises PolicyError if the model has no such exit."""
        check_exits((self.exit,), layers)
        return {self.exit: ()} if self.exit < layers else {}

    def decider(self, layers: int, streams: int) -> Decider:
        """One that leaves at the static exit."""
        return _AlwaysLeaves()
