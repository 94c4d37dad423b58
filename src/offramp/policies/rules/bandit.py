"""An exit chosen anew for every token by a multi-armed bandit that learns in each document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from offramp.policies.policy import Decider, ExitPolicy, FactsAtExit, Parameter, Rows, Tokens
from offramp.policies.reading import (
    ExitsOrAll,
    exits_below,
    read_number,
    read_signal,
    require_ascending,
    require_confidence,
    require_threshold,
    require_within,
)
from offramp.policies.rules.threshold import EXITS, VALUE
from offramp.policies.signals import SIGNALS, find_signal


@dataclass(frozen=True)
class Bandit(ExitPolicy):
    """One check a token, at the exit that an upper-confidence-bound bandit chooses for it.

    SplitEE (arXiv 2309.09195, algorithm 1), with the layers that are left in the place of its cloud. The arms
    are the exits and L, each document learns anew. A token is checked at its arm's exit only: with a
    confidence C of at least `value` it leaves there, else it runs to L.
    Reward: C - cost l / L for a token that leaves at exit l, C_L - cost for one that runs to L, C_L being the
    signal at L.
    Arm: the one with the largest mean reward + exploration sqrt(ln t / n), t tokens seen, n of them with this
    arm; each arm is tried once first, from L up to the shallowest, and the deeper wins a tie.
    """

    signal: str
    value: float
    exits: ExitsOrAll
    cost: float
    exploration: float

    kind: ClassVar[str] = "bandit"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        Parameter("signal", read_signal, "a confidence from 0 to 1, such as max_prob or margin"),
        VALUE,
        EXITS,
        Parameter("cost", read_number, "what running all layers costs, in units of confidence", "0.5"),
        Parameter("exploration", read_number, "weight of what is not yet known about an arm", "1.0"),
    )

    def __post_init__(self) -> None:
        """Refuse what the grammar would refuse, for policies built in Python."""
        require_confidence(find_signal(self.signal))
        require_threshold(find_signal(self.signal), self.value)
        require_ascending(self.exits)
        require_within(self.cost, 0.0, np.inf, "cost")
        require_within(self.exploration, 0.0, np.inf, "exploration")

    @property
    def remembers(self) -> bool:
        """It learns from earlier tokens."""
        return True

    @property
    def final_facts(self) -> tuple[str, ...]:
        """The confidence at exit L."""
        return (SIGNALS[self.signal].fact,)

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """The signal's fact at every exit that may be chosen. Raises PolicyError for exit L or beyond."""
        return dict.fromkeys(exits_below(self.exits, layers), (SIGNALS[self.signal].fact,))

    def decider(self, layers: int, streams: int) -> Decider:
        """One that learns the arms' rewards for each stream."""
        return _Chooses(self, layers, streams)


class _Chooses(Decider):
    """Remembers of each stream how often each arm was chosen, and its rewards."""

    def __init__(self, policy: Bandit, layers: int, streams: int) -> None:
        self.policy = policy
        self.layers = layers
        self.signal = SIGNALS[policy.signal]
        # From L up, so that the deepest of equal arms comes first.
        self.arms = np.array([layers, *reversed(exits_below(policy.exits, layers))], dtype=np.int64)
        self.counts = np.zeros((streams, len(self.arms)))
        self.rewards = np.zeros((streams, len(self.arms)))
        self.arm = np.zeros(streams, dtype=np.int64)
        self.confidence = np.zeros(streams)

    def begin(self, tokens: Tokens) -> None:
        super().begin(tokens)
        tried = np.maximum(self.counts, 1.0)
        played = np.maximum(self.counts.sum(axis=1, keepdims=True), 1.0)
        bonus = self.policy.exploration * np.sqrt(np.log(played) / tried)
        self.arm = np.argmax(np.where(self.counts > 0, self.rewards / tried + bonus, np.inf), axis=1)
        self.confidence = np.zeros(self.streams)

    def checks(self, exit: int) -> Rows:
        return np.asarray(self.arms[self.arm] == exit)

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        chosen = self.checks(exit)
        now = facts[self.signal.fact].astype(np.float64)
        self.confidence = np.where(chosen, now, self.confidence)
        return chosen & self.signal.fires(now, self.policy.value)

    def end(self, exits: NDArray[np.int64], final: FactsAtExit) -> None:
        through = exits == self.layers
        # A policy around this one may let a token leave elsewhere, from which no arm learns.
        learns = through | (exits == self.arms[self.arm])
        confidence = np.where(through, final[self.signal.fact], self.confidence)
        reward = confidence - self.policy.cost * exits / self.layers
        rows = np.flatnonzero(learns)
        self.counts[rows, self.arm[rows]] += 1.0
        self.rewards[rows, self.arm[rows]] += reward[rows]
