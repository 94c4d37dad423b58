"""Confidence signals: what a threshold compares, which fact it reads and what one check costs."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from offramp.errors import PolicyError

Direction = Literal["at least", "at most"]


@dataclass(frozen=True)
class Signal:
    """One per-(token, exit) measure of confidence.

    fact: the column of the trace, and the key in the facts that a decision is given.
    exit_when: the token leaves when the fact is "at least" or "at most" the threshold.
    probe: what must be computed for one check; "full head" is final norm, head and reductions.
    source: where the signal was introduced.
    """

    name: str
    fact: str
    exit_when: Direction
    probe: Literal["full head"]
    unit: str
    source: str

    def fires(self, fact: float, threshold: float) -> bool:
        """Whether a token with this fact leaves at this threshold."""
        return fact >= threshold if self.exit_when == "at least" else fact <= threshold


SIGNALS: dict[str, Signal] = {
    signal.name: signal
    for signal in (
        Signal(
            name="max_prob",
            fact="max_prob",
            exit_when="at least",
            probe="full head",
            unit="probability",
            source="largest softmax probability; EE-LLM (arXiv 2312.04916)",
        ),
        Signal(
            name="margin",
            fact="margin",
            exit_when="at least",
            probe="full head",
            unit="probability",
            source="difference of the two largest softmax probabilities; CALM (arXiv 2207.07061)",
        ),
        Signal(
            name="entropy",
            fact="entropy",
            exit_when="at most",
            probe="full head",
            unit="nats",
            source="entropy of the softmax; BranchyNet (arXiv 1709.01686)",
        ),
    )
}


def find_signal(name: str) -> Signal:
    """The signal of that name. Raises PolicyError for an unknown name, with near matches."""
    if name not in SIGNALS:
        raise PolicyError(f"unknown signal {name!r}", fix=suggest(name, SIGNALS))
    return SIGNALS[name]


def suggest(name: str, known: Iterable[str]) -> str:
    """What to write instead of an unknown name: the nearest known one, or all of them."""
    names = list(known)
    near = difflib.get_close_matches(name, names, n=1)
    choices = "choose one of: " + ", ".join(names)
    return f"did you mean {near[0]!r}? {choices}" if near else choices
