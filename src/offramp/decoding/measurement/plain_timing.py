"""The stopwatch on plain decoding: seconds per token of the full model, what every saving is held against."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from offramp.decoding.measurement.intervals import SAMPLES_NEEDED, median
from offramp.errors import ModelError
from offramp.models.discovery import UNFIT_ERRORS
from offramp.models.model import Model
from offramp.tracing.answers import cannot_generate

NEW_TOKENS = 16
REPEATS = SAMPLES_NEEDED


@dataclass(frozen=True)
class PlainTiming:
    """Seconds per new token of plain greedy `generate()`, batch 1.

    value: median of the repeats. low, high: its 95 % interval, None with too few repeats for one.
    samples: seconds per token of each repeat, in order. threads: torch's. load: one-minute load average at
    the start.
    """

    value: float
    low: float | None
    high: float | None
    samples: tuple[float, ...]
    new_tokens: int
    threads: int
    load: float


def time_plain_decoding(
    model: Model, prompt: Sequence[int], *, new_tokens: int = NEW_TOKENS, repeats: int = REPEATS
) -> PlainTiming:
    """Time `generate()` after one warm-up.

    A model with a short context gets a shorter prompt, and fewer new tokens if that does not suffice.
    The time of a call with one new token (the prompt) is taken away from that of a call with `new_tokens`
    more, so that the figure is one of decoding alone. No end token stops it early.

    Raises ModelError if transformers cannot generate with this model, or too fast to be timed.
    """
    from transformers import GenerationConfig

    model.require_loaded("decoding")
    room = (model.context_length or len(prompt) + new_tokens + 1) - 1
    new_tokens = max(1, min(new_tokens, room - 1))
    ids = torch.tensor([list(prompt)[: max(1, room - new_tokens)]], device=model.hf.device)

    def seconds(count: int) -> float:
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=False, max_new_tokens=count, min_new_tokens=count, pad_token_id=0
        )
        started = time.perf_counter()
        try:
            with torch.no_grad():
                model.hf.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        except UNFIT_ERRORS as error:
            raise cannot_generate(model, error) from error
        return time.perf_counter() - started

    load = os.getloadavg()[0]
    seconds(2)
    samples = [(seconds(new_tokens + 1) - seconds(1)) / new_tokens for _ in range(repeats)]
    found = median(samples)
    if found.value <= 0.0:
        raise ModelError(
            "a token takes too little time to be told apart from the prompt",
            where=model.name,
            fix="time a larger model, or a quieter machine",
        )
    return PlainTiming(
        value=found.value,
        low=found.low,
        high=found.high,
        samples=tuple(samples),
        new_tokens=new_tokens,
        threads=torch.get_num_threads(),
        load=load,
    )
