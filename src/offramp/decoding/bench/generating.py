"""transformers' own decoders: `generate()` plain, drafting with its first layers, or from the prompt."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from offramp.decoding.bench.counting import LayerCount
from offramp.decoding.bench.entrant import PADDING, Decoded, PromptBatch
from offramp.errors import ModelError
from offramp.models.model import Model

GREW = "_previous_max_cache_length"
"""What `generate()` remembers on a model of the last static cache: later ones would be as long."""


class FirstTokens:
    """A streamer that notes when the first new tokens came, and how many each row got."""

    def __init__(self) -> None:
        self.at = 0.0
        self.count = 0
        self._prompt_seen = False

    def put(self, tokens: Tensor) -> None:
        """The prompt, then new tokens: [batch], or [1, new] from an assisted step."""
        if self._prompt_seen and not self.count:
            self.at = time.perf_counter()
            self.count = tokens.shape[-1] if tokens.ndim > 1 else 1
        self._prompt_seen = True

    def end(self) -> None:
        """Nothing is left to say."""


def generate(
    model: Model,
    prompts: PromptBatch,
    new_tokens: int,
    *,
    config: Mapping[str, Any] | None = None,
    **keywords: Any,
) -> Decoded:
    """Greedy `generate()` of exactly so many new tokens.

    config: further entries of the model's generation config meanwhile. keywords: further ones of `generate`.

    Raises ModelError if it gives fewer, or all at once, and whatever transformers raises.
    """
    first = FirstTokens()
    with torch.no_grad(), own_config(model.hf, plain_config(new_tokens, **(config or {}))):
        started = time.perf_counter()
        ids = model.hf.generate(
            prompts.ids, attention_mask=prompts.attention_mask, streamer=first, **keywords
        )
        tokens = ids[:, prompts.ids.shape[1] :].tolist()
        ended = time.perf_counter()
    if any(len(row) != new_tokens for row in tokens) or not 0 < first.count < new_tokens:
        raise ModelError(
            f"generate() gave {len(tokens[0])} new tokens, {first.count} of them at once, where {new_tokens} "
            "were asked for",
            where=model.name,
            fix="ask for more new tokens",
        )
    return Decoded(
        tokens=tuple(map(tuple, tokens)),
        first_seconds=first.at - started,
        seconds=ended - first.at,
        first_tokens=first.count,
    )


def plain_config(new_tokens: int, **entries: Any) -> Any:
    """A generation config that is greedy, stops at no end token and has no processors; further entries."""
    from transformers import GenerationConfig

    return GenerationConfig(  # type: ignore[no-untyped-call]
        do_sample=False,
        num_beams=1,
        max_new_tokens=new_tokens,
        eos_token_id=None,
        pad_token_id=PADDING,
        disable_compile=True,
        **entries,
    )


@torch.no_grad()
def layers_of_draft(model: Model, ids: Tensor, exit: int) -> int:
    """How many layers run when the model is told, as `assistant_early_exit` does, that it has `exit` of them.

    ids: int64 [1, positions]. Many families ignore it and run all.
    """
    count = LayerCount(model.stack)
    with own_config(model.hf, model.hf.generation_config), count.attached():
        _base(model.hf).config.num_hidden_layers = exit
        model.hf(input_ids=ids, use_cache=False)
    return sum(count.calls)


def _base(hf: Any) -> Any:
    """Where `generate()` sets the number of layers of its drafts."""
    return getattr(hf, hf.base_model_prefix, hf)


@contextmanager
def own_config(hf: Any, config: Any) -> Iterator[None]:
    """The generation config of a model replaced, and put back with all that `generate()` may leave changed.

    `generate` fills what a given config leaves open from the model's own, so that one is replaced; the draft
    length of `assistant_early_exit` is read from nowhere else. While it drafts, `generate` sets the model's
    number of layers, and leaves it so if drafting fails.
    """
    before = hf.generation_config
    base = _base(hf)
    layers, grew = base.config.num_hidden_layers, hf.__dict__.get(GREW)
    hf.generation_config = config
    try:
        yield
    finally:
        hf.generation_config = before
        base.config.num_hidden_layers = layers
        hf.__dict__.pop(GREW, None)
        if grew is not None:
            hf.__dict__[GREW] = grew
