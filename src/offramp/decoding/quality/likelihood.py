"""How likely a given continuation is: under the full model, and token by token under a policy's exits."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from offramp.decoding.generation.generate import generate_batch
from offramp.decoding.generation.prompts import prompt_batch
from offramp.decoding.generation.result import Generation
from offramp.decoding.options import DecodingOptions
from offramp.decoding.quality.judging import judge
from offramp.errors import OfframpError
from offramp.models.model import Model


class _Listener:
    """A logits processor that changes nothing and notes the log-probability of each forced token.

    Where a position is predicted twice, as a draft and when it is verified, the later one holds.
    """

    def __init__(self, prompt: int, forced: list[int]) -> None:
        self.prompt = prompt
        self.forced = forced
        self.heard: dict[int, float] = {}

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        place = ids.shape[1] - self.prompt
        if place < len(self.forced):
            self.heard[place] = float(scores[0].float().log_softmax(-1)[self.forced[place]])
        return scores


def full_likelihood(model: Model, prompt: list[int], continuation: list[int]) -> float:
    """Mean log-probability per token in nats under the full model: one forward."""
    return float(judge(model, prompt, continuation).logprob.mean())


def policy_likelihood(
    model: Model, prompt: list[int], continuation: list[int], options: DecodingOptions
) -> tuple[float, Generation]:
    """Mean log-probability per token in nats, each read from the exit the token left by, and the generation.

    The continuation is forced. Penalties of the model's own generation config are off: what is asked for is
    the exits' own probability.

    Raises OfframpError if the generation stopped before the end of the continuation.
    """
    from transformers import LogitsProcessorList

    listener = _Listener(len(prompt), continuation)
    batch = prompt_batch(model, prompt, chat=False)
    generation = generate_batch(
        model,
        batch.ids,
        batch.mask,
        replace(options, new_tokens=len(continuation)),
        force_tokens=torch.tensor([continuation], device=batch.ids.device),
        logits_processor=LogitsProcessorList([listener]),
        repetition_penalty=1.0,
    ).rows[0]
    missing = [place for place in range(len(continuation)) if place not in listener.heard]
    if missing or generation.problem is not None:
        raise OfframpError(
            "the likelihood of a continuation is not known: " + (generation.problem or "it was cut short"),
            where=f"its token {missing[0] + 1}" if missing else "its end",
            fix="load the model in float32, or shorten the prompt",
        )
    return sum(listener.heard[place] for place in range(len(continuation))) / len(continuation), generation


def option_tokens(model: Model, text: str, prompt: list[int], option: str) -> list[int]:
    """Token ids of an option as they follow a prompt.

    text: the prompt's. prompt: its ids. The two are encoded together where that leaves the prompt's ids as
    they are, else apart.
    """
    together = model.encode(text + option)
    if together[: len(prompt)] == prompt and len(together) > len(prompt):
        return together[len(prompt) :]
    ids = model.tokenizer(option, add_special_tokens=False, verbose=False)["input_ids"]
    return [int(token) for token in ids]
