"""Rules that learn in each document: a threshold from the full model's answers, an exit from a bandit."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray

from offramp.kit.numbers import Count, NotNegative
from offramp.policies.parameter_types import ConfidenceName, ExitsOrAll, exits_below
from offramp.policies.policy import Decider, ExitPolicy, FactsAtExit, Rows, Tokens
from offramp.policies.rules.threshold import OnSignal
from offramp.policies.signals import SIGNALS

TOP1 = "top1"
PSEUDO_CONFIDENCES = (0.25, 0.75)
"""What both distributions are taken to have seen once each before the first token."""
GRID = np.arange(1, 200) / 200.0
"""The confidences among which the threshold is looked for."""
TIE = 1e-9
"""Of log odds: by how much rounding may miss a target that is reached exactly, on whatever processor."""


def betas(sums: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Beta distributions with the mean m and the variance v of what was seen: alpha, beta, float64 [...].

    Method of moments: alpha = m k, beta = (1 - m) k, k = m (1 - m) / v - 1.

    sums: float64 [..., 3], observations, their sum, the sum of their squares.
    """
    count, total, squares = np.moveaxis(sums, -1, 0)
    mean = total / count
    variance = squares / count - mean**2
    concentration = mean * (1.0 - mean) / variance - 1.0
    return mean * concentration, (1.0 - mean) * concentration


def agreement_thresholds(sums: NDArray[np.float64], target: float) -> NDArray[np.float64]:
    """The smallest confidence on the grid from which on agreement is at least that likely: float64 [streams].

    Bayes with one Beta distribution of the confidence for checks that agree and one for those that do not,
    each weighed by its observations. Infinite where no confidence will do.

    sums: float64 [streams, 2, 3], as in `betas`, of checks that disagreed and that agreed.
    """
    from scipy.special import betaln

    alpha, beta = betas(sums)
    weight = np.log(sums[..., 0]) - betaln(alpha, beta)
    density = (alpha - 1.0)[..., None] * np.log(GRID) + (beta - 1.0)[..., None] * np.log1p(-GRID)
    log_odds = density[:, 1] - density[:, 0] + (weight[:, 1] - weight[:, 0])[:, None]
    likely = log_odds >= np.log(target / (1.0 - target)) - TIE
    from_here_on = np.logical_and.accumulate(likely[:, ::-1], axis=1)
    places = from_here_on.sum(axis=1)
    return np.where(places > 0, GRID[len(GRID) - np.maximum(places, 1)], np.inf)


@dataclass(frozen=True)
class Adaptive(ExitPolicy):
    """A threshold learned anew in each document from how often sure checks agreed with the full model.

    FREE's adaptive threshold (arXiv 2310.05424, section on the adaptive threshold estimator): the confidence
    of checks that agree with the full model follows one Beta distribution, that of the others another; the
    threshold is the smallest confidence from which on the posterior chance of agreement is at least `target`.
    Both are fitted by their moments to all checks of the tokens that ran to exit L: the first `warmup` tokens
    of a document, and later ones that no check let go. Before the first each has seen the confidences 0.25
    and 0.75 once. One threshold for all exits; agreement means the same most probable token, so every check
    takes a full-head probe whatever the signal.
    """

    signal: ConfidenceName
    """a confidence from 0 to 1, such as max_prob or margin"""
    target: Annotated[float, Ge(0.001), Le(0.999)]
    """how likely agreement must be, between 0 and 1"""
    warmup: Count
    """tokens of each document that run to the last exit first"""
    exits: ExitsOrAll
    """the exits to check, as in 10+15+20, or "all" below the last layer"""

    kind: ClassVar[str] = "adaptive"

    @property
    def remembers(self) -> bool:
        """It learns from earlier tokens."""
        return True

    @property
    def final_facts(self) -> tuple[str, ...]:
        """The full model's most probable token."""
        return (TOP1,)

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """The signal's fact and the most probable token. Raises PolicyError for exit L or beyond."""
        return dict.fromkeys(exits_below(self.exits, layers), (SIGNALS[self.signal].fact, TOP1))

    def decider(self, layers: int, streams: int) -> Decider:
        """One that learns a threshold for each stream."""
        return _Learns(self, layers, streams)


class _Learns(Decider):
    """Remembers the sums of the confidences of checks that disagreed and agreed."""

    def __init__(self, policy: Adaptive, layers: int, streams: int) -> None:
        self.policy = policy
        self.layers = layers
        self.signal = SIGNALS[policy.signal]
        pseudo = np.array(PSEUDO_CONFIDENCES)
        start = [len(pseudo), pseudo.sum(), np.sum(pseudo**2)]
        self.sums = np.tile(np.array(start, dtype=np.float64), (streams, 2, 1))
        self.thresholds = np.full(streams, np.inf)
        self.warm = np.zeros(streams, dtype=np.bool_)
        self.seen: list[tuple[NDArray[np.float64], NDArray[Any]]] = []

    def begin(self, tokens: Tokens) -> None:
        super().begin(tokens)
        self.warm = tokens.index >= self.policy.warmup
        self.seen = []

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        confidence = facts[self.signal.fact].astype(np.float64)
        self.seen.append((confidence, facts[TOP1].copy()))
        return np.asarray(self.warm & (confidence >= self.thresholds))

    def end(self, exits: NDArray[np.int64], final: FactsAtExit) -> None:
        rows = np.flatnonzero(exits == self.layers)
        if not rows.size or not self.seen:
            return
        # In float32 a probability may round to just above 1.
        confidence = np.clip(np.stack([seen[rows] for seen, _ in self.seen]), 0.0, 1.0)
        agrees = np.stack([top1[rows] == final[TOP1][rows] for _, top1 in self.seen])
        for place, among in enumerate((~agrees, agrees)):
            self.sums[rows, place, 0] += among.sum(axis=0)
            self.sums[rows, place, 1] += np.where(among, confidence, 0.0).sum(axis=0)
            self.sums[rows, place, 2] += np.where(among, confidence**2, 0.0).sum(axis=0)
        self.thresholds[rows] = agreement_thresholds(self.sums[rows], self.policy.target)


@dataclass(frozen=True)
class Bandit(OnSignal):
    """One check a token, at the exit that an upper-confidence-bound bandit chooses for it.

    SplitEE (arXiv 2309.09195, algorithm 1), with the layers that are left in the place of its cloud. The arms
    are the exits and L, each document learns anew. A token is checked at its arm's exit only: with a
    confidence C of at least `value` it leaves there, else it runs to L.
    Reward: C - cost l / L for a token that leaves at exit l, C_L - cost for one that runs to L, C_L being the
    signal at L.
    Arm: the one with the largest mean reward + exploration sqrt(ln t / n), t tokens seen, n of them with this
    arm; each arm is tried once first, from L up to the shallowest, and the deeper wins a tie.
    """

    signal: ConfidenceName
    """a confidence from 0 to 1, such as max_prob or margin"""
    cost: NotNegative = 0.5
    """what running all layers costs, in units of confidence"""
    exploration: NotNegative = 1.0
    """weight of what is not yet known about an arm"""

    kind: ClassVar[str] = "bandit"

    @property
    def remembers(self) -> bool:
        """It learns from earlier tokens."""
        return True

    @property
    def final_facts(self) -> tuple[str, ...]:
        """The confidence at exit L."""
        return (SIGNALS[self.signal].fact,)

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
