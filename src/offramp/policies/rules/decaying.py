"""A threshold that loosens with the position in the answer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from offramp.policies.policy import Decider, ExitPolicy, Parameter, Tokens
from offramp.policies.reading import (
    ExitsOrAll,
    exits_below,
    read_count,
    read_number,
    require_ascending,
    require_threshold,
    require_within,
)
from offramp.policies.rules.threshold import EXITS, SIGNAL, VALUE, Compares, Limit, signal_needs
from offramp.policies.signals import SIGNALS, Signal, find_signal

LOOSENED = 0.1
"""The share of the threshold that wears off in the end."""


@dataclass(frozen=True)
class Decaying(ExitPolicy):
    """A threshold that loosens with the position in the answer, since early errors spread furthest.

    CALM's decaying threshold (arXiv 2207.07061, section 3.5) in the form of FREE's published code (arXiv
    2310.05424), whose decaying part is a share of the threshold too: at a token with t tokens before it in
    the answer the threshold is 0.9 v + 0.1 v exp(-k t / N), v = value, k = decay, N = length: v at first,
    0.9 v in the end.
    Where less is surer (entropy) it rises by as much instead, to 1.1 v; of a negative v it loosens too.
    """

    signal: str
    value: float
    exits: ExitsOrAll
    decay: float
    length: int

    kind: ClassVar[str] = "decaying"
    parameters: ClassVar[tuple[Parameter, ...]] = (
        SIGNAL,
        VALUE,
        EXITS,
        Parameter("decay", read_number, "how fast the threshold loosens: k in exp(-k t / N)", "4.0"),
        Parameter("length", read_count, "N, the tokens of a long answer", "128"),
    )

    def __post_init__(self) -> None:
        """Refuse what the grammar would refuse, for policies built in Python."""
        require_threshold(find_signal(self.signal), self.value)
        require_ascending(self.exits)
        require_within(self.decay, 0.0, np.inf, "decay")
        require_within(self.length, 1, np.inf, "length")

    def needs(self, layers: int) -> Mapping[int, tuple[str, ...]]:
        """The signal's fact at the exits it probes. Raises PolicyError for exit L or beyond."""
        return signal_needs(SIGNALS[self.signal], exits_below(self.exits, layers))

    def decider(self, layers: int, streams: int) -> Decider:
        """One that compares with each token's own threshold."""
        return _Decays(SIGNALS[self.signal], self)


class _Decays(Compares):
    """Works the token's threshold out before its first layer."""

    def __init__(self, signal: Signal, policy: Decaying) -> None:
        super().__init__(signal)
        self.policy = policy
        self.limits: NDArray[np.float64] = np.zeros(0)

    def begin(self, tokens: Tokens) -> None:
        super().begin(tokens)
        worn_off = 1.0 - np.exp(-self.policy.decay * tokens.index / self.policy.length)
        loosening = LOOSENED * abs(self.policy.value) * worn_off
        self.limits = self.policy.value + (-loosening if self.signal.exit_when == "at least" else loosening)

    def limit(self, exit: int) -> Limit:
        return self.limits
