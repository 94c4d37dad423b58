"""A threshold that follows the complexity of the input."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from offramp.policies.policy import Decider, ExitPolicy, FactsAtExit, Parameter, Rows, Tokens
from offramp.policies.reading import (
    ExitsOrAll,
    exits_below,
    one_of,
    read_number,
    require_ascending,
    require_threshold,
    require_within,
)
from offramp.policies.rules.threshold import EXITS, SIGNAL, VALUE, Compares, Limit, signal_needs
from offramp.policies.signals import SIGNALS, find_signal

ENTROPY = "entropy"
PROMPT_ENTROPY = "prompt_entropy"


@dataclass(frozen=True)
class Dynamic(ExitPolicy):
    """A threshold that follows what is known of the input's complexity before the token is decided.

    The threshold is value + slope (c - centre), cut to the signal's range, as the study "The Diminishing
    Returns of Early-Exit Decoding in Modern LLMs" (arXiv 2603.23701) proposes in general terms. c is one of
    position: the tokens before it in the answer.
    running_entropy: mean, over the earlier tokens of the document, of the entropy at the exit where each
    left, in nats. It must be read there, which takes a full-head probe at every check.
    prompt_entropy: mean entropy of the full model at the end of the prompt, in nats, from its prefill.
    As long as nothing is known, c = centre.
    """

    signal: str
    value: float
    exits: ExitsOrAll
    complexity: str
    slope: float
    centre: float

    kind: ClassVar[str] = "dynamic"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        SIGNAL,
        VALUE,
        EXITS,
        Parameter(
            "complexity",
            one_of("position", "running_entropy", PROMPT_ENTROPY),
            "what the threshold follows: position, running_entropy or prompt_entropy",
        ),
        Parameter("slope", read_number, "how much the threshold rises with one unit of complexity"),
        Parameter("centre", read_number, "the complexity at which the threshold is the value", "0.0"),
    )

    def __post_init__(self) -> None:
        """Refuse what the grammar would refuse, for policies built in Python."""
        require_threshold(find_signal(self.signal), self.value)
        require_ascending(self.exits)
        self.parameters[3].read(self.complexity)
        require_within(self.slope, -np.inf, np.inf, "slope")
        require_within(self.centre, -np.inf, np.inf, "centre")

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
        signal = SIGNALS[self.signal]
        needs = signal_needs(signal, exits_below(self.exits, layers))
        if not self.remembers:
            return needs
        return {
            exit: (*facts, ENTROPY) if signal.fact in facts and signal.fact != ENTROPY else facts
            for exit, facts in needs.items()
        }

    def decider(self, layers: int, streams: int) -> Decider:
        """One that compares with each token's own threshold."""
        if self.complexity == "position":
            return _ByPosition(self)
        return _ByRunningEntropy(self, layers, streams) if self.remembers else _ByPromptEntropy(self)


class _Follows(Compares):
    """Works the token's threshold out before its first layer."""

    def __init__(self, policy: Dynamic) -> None:
        super().__init__(SIGNALS[policy.signal])
        self.policy = policy
        self.limits: NDArray[np.float64] = np.zeros(0)

    @abstractmethod
    def complexity(self, tokens: Tokens) -> NDArray[np.float64]:
        """What is known of each stream's complexity: float64 [streams]."""

    def begin(self, tokens: Tokens) -> None:
        super().begin(tokens)
        beyond = self.complexity(tokens) - self.policy.centre
        limits = self.policy.value + self.policy.slope * beyond
        self.limits = np.clip(limits, self.signal.low, self.signal.high)

    def limit(self, exit: int) -> Limit:
        return self.limits


class _ByPosition(_Follows):
    def complexity(self, tokens: Tokens) -> NDArray[np.float64]:
        return tokens.index.astype(np.float64)


class _ByPromptEntropy(_Follows):
    def complexity(self, tokens: Tokens) -> NDArray[np.float64]:
        return tokens.facts[PROMPT_ENTROPY]


class _ByRunningEntropy(_Follows):
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
