"""The threshold rules: a token leaves at the first checked exit whose signal passes a threshold.

Fixed for all exits, one for each, loosening with the position, or following the complexity of the input.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.kit.numbers import Count, NotNegative, Number
from offramp.policies.parameter_types import Exits, ExitsOrAll, Limit, Limits, SignalName, exits_below
from offramp.policies.policy import Decider, ExitPolicy, FactsAtExit, Rows, Tokens
from offramp.policies.signals import OPENING_FACT, SIGNALS, Signal


def signal_needs(signal: Signal, exits: tuple[int, ...]) -> dict[int, tuple[str, ...]]:
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
    def limit(self, exit: int) -> float | NDArray[np.float64]:
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

    def limit(self, exit: int) -> float | NDArray[np.float64]:
        return self.limits[exit]


class _PerToken(Compares):
    """Works the token's threshold out before its first layer."""

    def __init__(self, signal: Signal) -> None:
        super().__init__(signal)
        self.limits: NDArray[np.float64] = np.zeros(0)

    @abstractmethod
    def limits_of(self, tokens: Tokens) -> NDArray[np.float64]:
        """The threshold of each stream's token: float64 [streams]."""

    def begin(self, tokens: Tokens) -> None:
        super().begin(tokens)
        self.limits = self.limits_of(tokens)

    def limit(self, exit: int) -> float | NDArray[np.float64]:
        return self.limits


@dataclass(frozen=True)
class OnSignal(ExitPolicy):
    """What rules have in common that compare one signal with a threshold at some exits."""

    signal: SignalName
    """the confidence signal"""
    value: Limit
    """the threshold, in the signal's unit"""
    exits: ExitsOrAll
    """the exits to check, as in 10+15+20, or "all" below the last layer"""

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """The signal's fact at the exits it probes. Raises PolicyError for exit L or beyond."""
        return signal_needs(SIGNALS[self.signal], exits_below(self.exits, layers))


@dataclass(frozen=True)
class Threshold(OnSignal):
    """A token leaves at the first checked exit whose signal passes one threshold.

    Confidence-thresholded early exit as in BranchyNet (arXiv 1709.01686, algorithm 1) and CALM (arXiv
    2207.07061, equation 1), with one threshold for all exits and positions.
    """

    kind: ClassVar[str] = "threshold"

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

    signal: SignalName
    """the confidence signal"""
    values: Limits
    """the threshold of each exit, as in 0.9+0.8+0.7"""
    exits: Exits
    """the exits to check, as in 10+15+20"""

    kind: ClassVar[str] = "thresholds"

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """The signal's fact at the exits it probes. Raises PolicyError for exit L or beyond."""
        return signal_needs(SIGNALS[self.signal], exits_below(self.exits, layers))

    def decider(self, layers: int, streams: int) -> Decider:
        """One that compares."""
        return _Fixed(SIGNALS[self.signal], dict(zip(self.exits, self.values, strict=True)))


LOOSENED = 0.1
"""The share of the threshold that wears off in the end."""


@dataclass(frozen=True)
class Decaying(OnSignal):
    """A threshold that loosens with the position in the answer, since early errors spread furthest.

    CALM's decaying threshold (arXiv 2207.07061, section 3.5) in the form of FREE's published code (arXiv
    2310.05424), whose decaying part is a share of the threshold too: at a token with t tokens before it in
    the answer the threshold is 0.9 v + 0.1 v exp(-k t / N), v = value, k = decay, N = length: v at first,
    0.9 v in the end.
    Where less is surer (entropy) it rises by as much instead, to 1.1 v; of a negative v it loosens too.
    """

    decay: NotNegative = 4.0
    """how fast the threshold loosens: k in exp(-k t / N)"""
    length: Count = 128
    """N, the tokens of a long answer"""

    kind: ClassVar[str] = "decaying"

    def decider(self, layers: int, streams: int) -> Decider:
        """One that compares with each token's own threshold."""
        return _Decays(SIGNALS[self.signal], self)


class _Decays(_PerToken):
    """A share of the threshold wears off with the position."""

    def __init__(self, signal: Signal, policy: Decaying) -> None:
        super().__init__(signal)
        self.policy = policy

    def limits_of(self, tokens: Tokens) -> NDArray[np.float64]:
        worn_off = 1.0 - np.exp(-self.policy.decay * tokens.index / self.policy.length)
        loosening = LOOSENED * abs(self.policy.value) * worn_off
        return self.policy.value + (-loosening if self.signal.exit_when == "at least" else loosening)


ENTROPY = "entropy"
PROMPT_ENTROPY = "prompt_entropy"


@dataclass(frozen=True)
class Dynamic(OnSignal):
    """A threshold that follows what is known of the input's complexity before the token is decided.

    The threshold is value + slope (c - centre), cut to the signal's range, as the study "The Diminishing
    Returns of Early-Exit Decoding in Modern LLMs" (arXiv 2603.23701) proposes in general terms. c is one of
    position: the tokens before it in the answer.
    running_entropy: mean, over the earlier tokens of the document, of the entropy at the exit where each
    left, in nats. It must be read there, which takes a full-head probe at every check.
    prompt_entropy: mean entropy of the full model at the end of the prompt, in nats, from its prefill.
    As long as nothing is known, c = centre.
    """

    complexity: Literal["position", "running_entropy", "prompt_entropy"]
    """what the threshold follows: position, running_entropy or prompt_entropy"""
    slope: Number
    """how much the threshold rises with one unit of complexity"""
    centre: Number = 0.0
    """the complexity at which the threshold is the value"""

    kind: ClassVar[str] = "dynamic"

    @property
    def remembers(self) -> bool:
        """Whether it follows the entropy of earlier tokens."""
        return self.complexity == "running_entropy"

    @property
    def final_facts(self) -> tuple[str, ...]:
        """The entropy of tokens that ran to exit L, if it follows that of earlier tokens."""
        return (ENTROPY,) if self.remembers else ()

    @property
    def document_facts(self) -> tuple[str, ...]:
        """The prompt's entropy, if it follows that."""
        return (PROMPT_ENTROPY,) if self.complexity == PROMPT_ENTROPY else ()

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """The signal's fact, and the entropy where a token may leave if earlier tokens' is followed.

        Raises PolicyError for exit L or beyond.
        """
        needs, signal = super().needs(layers), SIGNALS[self.signal]
        if not self.remembers:
            return needs
        return {
            exit: (*facts, ENTROPY) if signal.fact in facts and signal.fact != ENTROPY else facts
            for exit, facts in needs.items()
        }

    def decider(self, layers: int, streams: int) -> Decider:
        """One that compares with each token's own threshold."""
        if self.complexity == "position":
            return _FollowsPosition(self)
        return _FollowsEntropy(self, layers, streams) if self.remembers else _FollowsPrompt(self)


class _Follows(_PerToken):
    """The threshold rises with the complexity, within the signal's range."""

    def __init__(self, policy: Dynamic) -> None:
        super().__init__(SIGNALS[policy.signal])
        self.policy = policy

    @abstractmethod
    def complexity(self, tokens: Tokens) -> NDArray[np.float64]:
        """What is known of each stream's complexity: float64 [streams]."""

    def limits_of(self, tokens: Tokens) -> NDArray[np.float64]:
        beyond = self.complexity(tokens) - self.policy.centre
        limits = self.policy.value + self.policy.slope * beyond
        return np.clip(limits, self.signal.low, self.signal.high)


class _FollowsPosition(_Follows):
    def complexity(self, tokens: Tokens) -> NDArray[np.float64]:
        return tokens.index.astype(np.float64)


class _FollowsPrompt(_Follows):
    def complexity(self, tokens: Tokens) -> NDArray[np.float64]:
        return tokens.facts[PROMPT_ENTROPY]


class _FollowsEntropy(_Follows):
    """Remembers of each stream the entropy at the exits where its tokens left."""

    def __init__(self, policy: Dynamic, layers: int, streams: int) -> None:
        super().__init__(policy)
        self.layers = layers
        self.sums = np.zeros(streams)
        self.counts = np.zeros(streams)
        self.seen: dict[int, NDArray[np.float64]] = {}

    def complexity(self, tokens: Tokens) -> NDArray[np.float64]:
        known = self.counts > 0
        mean = self.sums / np.where(known, self.counts, 1.0)
        return np.where(known, mean, self.policy.centre)

    def begin(self, tokens: Tokens) -> None:
        super().begin(tokens)
        self.seen = {}

    def decide(self, exit: int, facts: FactsAtExit) -> Rows:
        if ENTROPY in facts:
            self.seen[exit] = facts[ENTROPY].astype(np.float64)
        return super().decide(exit, facts)

    def end(self, exits: NDArray[np.int64], final: FactsAtExit) -> None:
        # A policy around this one may let a token leave where no entropy was read; it is then left out.
        self._add(exits == self.layers, final[ENTROPY])
        for exit, entropy in self.seen.items():
            self._add(exits == exit, entropy)

    def _add(self, rows: Rows, entropy: NDArray[np.float64]) -> None:
        self.sums[rows] += entropy[rows]
        self.counts[rows] += 1.0
