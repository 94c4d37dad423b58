"""The facts kept for every (token, exit): names, types, units and meaning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Fact:
    """One column of a trace. z: logits of an exit, p: their softmax, L: the last exit (the full model)."""

    name: str
    dtype: Literal["int32", "float32"]
    unit: str
    meaning: str


FACTS: tuple[Fact, ...] = (
    Fact("top1", "int32", "token id", "most probable token at the exit; the lowest id among equals"),
    Fact("max_prob", "float32", "probability", "largest probability p1"),
    Fact("margin", "float32", "probability", "p1 - p2, the two largest probabilities"),
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

FACT_BY_NAME: dict[str, Fact] = {fact.name: fact for fact in FACTS}
