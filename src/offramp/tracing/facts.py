"""The facts kept for every (token, exit): names, types, units and meaning."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from offramp.kit.rules import OneOf

ROUNDING = 1e-3
_LIMITS = {
    "probability": (-ROUNDING, 1 + ROUNDING),
    "share": (0, 1),
    "cosine": (-1, 1),
    "ratio": (0, math.inf),
    "nats": (-ROUNDING, math.inf),
    "final_logprob": (-math.inf, ROUNDING),
}
"""Of facts by name, else by unit."""


@dataclass(frozen=True)
class Fact:
    """One column of a trace. z: logits of an exit, p: their softmax, L: the last exit (the full model)."""

    name: str
    dtype: Literal["int32", "float32"]
    unit: str
    meaning: str
    recorded_with: str | None = None
    """The option that records it, None for a fact of every trace."""
    at_most: str | None = None
    """The fact that it is never above, but for rounding."""

    def limits(self, vocabulary: int) -> tuple[float, float]:
        """The least and the most that it can be in a vocabulary of so many tokens, but for rounding."""
        if self.unit in ("token id", "rank"):
            return 0, vocabulary - 1
        return _LIMITS.get(self.name) or _LIMITS.get(self.unit, (-math.inf, math.inf))


def _on_request(
    name: str,
    unit: str,
    meaning: str,
    signal: str | None = None,
    dtype: Literal["int32", "float32"] = "float32",
) -> Fact:
    return Fact(name, dtype, unit, meaning, f"--signals {signal or name}")


def _from_heads(name: str, meaning: str) -> Fact:
    return Fact(name, "float32", "probability", meaning, "--heads FILE")


FACTS: tuple[Fact, ...] = (
    Fact("top1", "int32", "token id", "most probable token at the exit; the lowest id among equals"),
    Fact("max_prob", "float32", "probability", "largest probability p1"),
    Fact("margin", "float32", "probability", "p1 - p2, the two largest probabilities", at_most="max_prob"),
    Fact("entropy", "float32", "nats", "entropy of p"),
    Fact("kl_to_final", "float32", "nats", "KL(p_L || p_exit)"),
    Fact("nll", "float32", "nats", "-log p of the observed next token"),
    Fact("final_rank", "int32", "rank", "rank of the full model's top-1 token in z, 0 = top"),
    Fact("final_logprob", "float32", "nats", "log p of the full model's top-1 token"),
    Fact("logit_cosine", "float32", "cosine", "cosine of z and z_L"),
    Fact(
        "centred_logit_cosine", "float32", "cosine", "cosine of z and z_L, mean over the vocabulary removed"
    ),
    Fact("shuffled_logit_cosine", "float32", "cosine", "cosine of z and another token's z_L: chance level"),
    Fact("hidden_cosine_to_final", "float32", "cosine", "cosine of the hidden state and the last layer's"),
    Fact(
        "hidden_cosine_to_previous",
        "float32",
        "cosine",
        "cosine of the hidden state before and after the layer",
    ),
    Fact("update_norm", "float32", "ratio", "norm of the layer's update over the norm of its input"),
)

SIGNAL_FACTS: dict[str, tuple[Fact, ...]] = {
    "logit_gap": (_on_request("logit_gap", "logits", "z1 - z2, the two largest logits"),),
    "restricted": (
        _on_request(
            "restricted_top1", "token id", "most probable token of the short list", "restricted", "int32"
        ),
        _on_request(
            "restricted_max_prob",
            "probability",
            "largest probability of a softmax over the short list",
            "restricted",
        ),
        _on_request(
            "restricted_margin",
            "probability",
            "difference of the two largest probabilities of a softmax over the short list",
            "restricted",
        ),
    ),
    "kl_to_previous": (
        _on_request(
            "kl_to_previous",
            "nats",
            "KL(p of the previous traced exit || p); infinite at the first traced exit",
        ),
    ),
    "js_to_previous": (
        _on_request(
            "js_to_previous",
            "nats",
            "Jensen-Shannon divergence of p and p of the previous traced exit; ln 2 at the first traced exit",
        ),
    ),
    "top_k_overlap": (
        _on_request(
            "top_k_overlap",
            "share",
            "share of the ten most probable tokens that are so at the previous traced exit; 0 at the first",
        ),
    ),
}
"""Facts recorded on request, by what `--signals` calls them."""

HEAD_FACTS: tuple[Fact, ...] = (
    _from_heads("correctness", "logistic classifier of agreement, on the hidden state"),
    _from_heads("correctness_network", "small network that predicts agreement, on the hidden state"),
    _from_heads(
        "short_correctness",
        "logistic classifier, on the hidden state, of agreement by the short list's best token",
    ),
    _from_heads("adainfer", "classifier of agreement on p1 and p1 - p2"),
    _from_heads("candidate_score", "network that predicts agreement from a few candidate tokens' logits"),
    _from_heads("convergence", "classifier of cos(h, h_L) > 0.98, on the hidden state"),
    _from_heads("gate", "small network trained on expected seconds at a floor, on the hidden state"),
)
"""Facts that a file of fitted exit heads gives; 1 at exit L."""

TRAINED_FACTS = ("gate",)
"""Those of them that are trained for a machine and a floor, not fitted with the others."""

DOCUMENT_FACTS: dict[str, Fact] = {
    "prompt_entropy": _on_request(
        "prompt_entropy",
        "nats",
        "mean entropy of the full model over the last 32 tokens of the prompt, generation mode only",
    ),
}
"""Facts of a whole document, known before its first token is decoded."""

FACT_BY_NAME: dict[str, Fact] = {
    fact.name: fact
    for fact in (*FACTS, *(fact for facts in SIGNAL_FACTS.values() for fact in facts), *HEAD_FACTS)
}

FactName = Annotated[str, OneOf("fact", lambda: FACT_BY_NAME)]
DocumentFactName = Annotated[str, OneOf("document fact", lambda: DOCUMENT_FACTS)]
