"""Confidence signals: what a threshold compares, which fact it reads and what one check costs."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from offramp.costs.probes import FULL_HEAD, RESTRICTED_HEAD
from offramp.errors import PolicyError
from offramp.tracing.facts import HEAD_FACTS

Direction = Literal["at least", "at most"]

ROUNDING = 1e-4
"""How far a recorded fact may lie outside its signal's range, having been summed in float32."""

OPENING_FACT = "top1"
"""What the first check of a signal that compares exits reads: the output to compare with."""


@dataclass(frozen=True)
class Signal:
    """One per-(token, exit) measure of confidence.

    source: what it is, and where it was introduced. probe: what one check computes, a name in
    `offramp.costs.probes.PROBES`. exit_when: the token leaves when the fact is "at least" or "at most" the
    threshold. low, high: the range of the fact, infinite where it has no bound. opens: its first check only
    makes what later ones compare with (a full head product) and never lets a token leave. looks_back: it
    compares with the check before, not with the first. column: of the trace, where that is not called as the
    signal is.
    """

    name: str
    source: str
    probe: str = FULL_HEAD
    unit: str = "probability"
    exit_when: Direction = "at least"
    opens: bool = False
    looks_back: bool = False
    low: float = 0.0
    high: float = 1.0
    column: str | None = None

    @property
    def fact(self) -> str:
        """The column of the trace, and the key in the facts that a decision is given."""
        return self.name if self.column is None else self.column

    @property
    def is_confidence(self) -> bool:
        """Whether it is a share of certainty from 0 to 1 that every check gives."""
        return (self.low, self.high, self.exit_when) == (0.0, 1.0, "at least") and not self.opens

    def holds(self, threshold: float) -> bool:
        """Whether a threshold lies within the signal's range, and so tells tokens apart."""
        return self.low - ROUNDING <= threshold <= self.high + ROUNDING

    def fires(self, fact: NDArray[Any], threshold: Any) -> NDArray[np.bool_]:
        """Which tokens leave: facts [rows], a threshold or one per row, compared in float64."""
        # In float64: numpy would round a Python float to the fact's float32.
        limit = np.asarray(threshold, dtype=np.float64)
        return np.asarray(fact >= limit if self.exit_when == "at least" else fact <= limit)


SIGNALS: dict[str, Signal] = {
    signal.name: signal
    for signal in (
        Signal("max_prob", "largest softmax probability; EE-LLM (arXiv 2312.04916)"),
        Signal(
            "margin",
            "difference of the two largest softmax probabilities; CALM (arXiv 2207.07061, section 3.5)",
        ),
        Signal("logit_gap", "difference of the two largest logits, log p1/p2", unit="logits", high=math.inf),
        Signal(
            "entropy",
            "entropy of the softmax; BranchyNet (arXiv 1709.01686, section III), DeeBERT (arXiv 2004.12993)",
            unit="nats",
            exit_when="at most",
            high=math.inf,
        ),
        Signal(
            "hidden_cosine",
            "cosine of the hidden state before and after the layer; CALM's state saturation (arXiv "
            "2207.07061, section 3.5)",
            "cosine",
            unit="cosine",
            low=-1.0,
            column="hidden_cosine_to_previous",
        ),
        Signal(
            "kl_to_previous",
            "KL(p of the previous check || p of this one): the prediction has settled",
            unit="nats",
            high=math.inf,
            exit_when="at most",
            opens=True,
            looks_back=True,
        ),
        Signal(
            "js_to_previous",
            "Jensen-Shannon divergence of the predictions at this check and the previous one",
            unit="nats",
            high=math.log(2.0),
            exit_when="at most",
            opens=True,
            looks_back=True,
        ),
        Signal(
            "top_k_overlap",
            "share of the ten most probable tokens that were so at the previous check: top-k stability",
            unit="share",
            opens=True,
            looks_back=True,
        ),
        Signal(
            "restricted_margin", "margin of a softmax over a short list of frequent tokens", RESTRICTED_HEAD
        ),
        Signal(
            "restricted_max_prob",
            "largest probability of a softmax over a short list of frequent tokens",
            RESTRICTED_HEAD,
        ),
        Signal(
            "correctness",
            "logistic classifier of agreement on the hidden state; CALM's meta classifier (arXiv 2207.07061, "
            "section 3.5), BERxiT's learning to exit (EACL 2021, section 4)",
            "classifier",
        ),
        Signal("correctness_network", "the same with a small network", "network"),
        Signal(
            "short_correctness",
            "logistic classifier, on the hidden state, of agreement by the short list's best token",
            "classifier",
        ),
        Signal(
            "adainfer", "classifier of agreement on p1 and p1 - p2; AdaInfer (arXiv 2403.02181, section 4)"
        ),
        Signal(
            "candidate_score",
            "classifier of agreement on a few candidate tokens' logits, shares and their change; SpecEE "
            "(arXiv 2504.08850, section 4)",
            "candidates",
            opens=True,
        ),
        Signal(
            "convergence", "router on the hidden state that predicts cos(h, h_L) > 0.98; TIDE", "classifier"
        ),
        Signal(
            "gate", "small network on the hidden state, trained on expected seconds at a floor", "network"
        ),
    )
}

# Facts that policies read beside the signals' own.
OTHER_PROBES = {"top1": FULL_HEAD, "restricted_top1": RESTRICTED_HEAD}

_PROBE_OF_FACT = {signal.fact: signal.probe for signal in SIGNALS.values()} | OTHER_PROBES
_LOOKS_BACK = {signal.fact for signal in SIGNALS.values() if signal.looks_back}
_OPENED = {signal.fact for signal in SIGNALS.values() if signal.opens}
# At exit L the full head's product is at hand, and what a fitted head tells of it is 1 by definition.
_AT_HAND_AT_LAST = {fact for fact, probe in _PROBE_OF_FACT.items() if probe == FULL_HEAD} | {
    fact.name for fact in HEAD_FACTS
}


def probe_of(fact: str) -> str:
    """The kind of probe that a fact takes. Raises PolicyError for one that no decoder could compute."""
    if fact not in _PROBE_OF_FACT:
        raise PolicyError(
            f"no probe gives the fact {fact!r}", fix="read one of: " + ", ".join(sorted(_PROBE_OF_FACT))
        )
    return _PROBE_OF_FACT[fact]


def probes_of(facts: Iterable[str]) -> tuple[str, ...]:
    """The kinds of probe that some facts of one exit take together, each once."""
    return tuple(sorted({probe_of(fact) for fact in facts}))


def probed_at_last(facts: Iterable[str]) -> tuple[str, ...]:
    """Those of some facts at exit L that take a probe beside the full model's own head.

    Raises PolicyError for one that no decoder could compute.
    """
    return tuple(fact for fact in facts if probe_of(fact) and fact not in _AT_HAND_AT_LAST)


def needs_full_head_at_last(facts: Iterable[str]) -> tuple[str, ...]:
    """Those of some facts at exit L that come out of the full model's own head.

    Raises PolicyError for one that no decoder could compute.
    """
    return tuple(fact for fact in facts if probe_of(fact) == FULL_HEAD)


def looks_back(fact: str) -> bool:
    """Whether a fact compares an exit with the check before it."""
    return fact in _LOOKS_BACK


def is_opened(fact: str) -> bool:
    """Whether a fact compares with an earlier check, which must have been made."""
    return fact in _OPENED
