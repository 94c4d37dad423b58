"""Quality of what is generated, as the full model judges it (`judging.py`); readable without torch."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.scoring.estimate import Estimate


@dataclass(frozen=True)
class FreeRunning:
    """Quality of generated answers, each judged by the full model, means over prompts.

    tokens_before_divergence: new tokens up to the first that differs from the full model's own greedy answer.
    sequence_match: share of answers equal to it. agreement: share of generated tokens that are the full
    model's choice on the same (generated) prefix. nll, plain_nll: nats per token under the full model of what
    was generated, and of the full model's own answer. prompts, new_tokens: how many.
    """

    tokens_before_divergence: Estimate[float]
    sequence_match: Estimate[float]
    agreement: Estimate[float]
    nll: Estimate[float]
    plain_nll: Estimate[float]
    prompts: int
    new_tokens: int
