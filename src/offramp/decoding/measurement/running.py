"""Decoders at work: transformers' own `generate()`, and decoders that can be stopped after any token."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from offramp.decoding.generation.generate import hold_batch
from offramp.decoding.measurement.decoder import PADDING, Decoded, PromptBatch, Running
from offramp.decoding.options import DecodingOptions
from offramp.errors import ModelError, OfframpError
from offramp.models.calls import first_tensor
from offramp.models.model import Model
from offramp.models.stack import ExitStack


class LayerCount:
    """Executions counted by hooks.

    calls: how often each layer ran, in order. rows: rows (sequences times positions) times layers.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._places: dict[nn.Module, list[int]] = {}
        for place, layer in enumerate(stack.layers):
            self._places.setdefault(layer, []).append(place)
        self.calls = [0] * len(stack)
        self.rows = 0

    def _ran(self, layer: nn.Module, arguments: Any, output: Any) -> None:
        # A layer that stands at several places (shared weights) counts for the first of them.
        self.calls[self._places[layer][0]] += 1
        shape = first_tensor(output).shape
        self.rows += shape[0] * shape[1]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on every layer; removed whatever happens."""
        handles = [layer.register_forward_hook(self._ran) for layer in self._places]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


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


class LoopRunning(Running):
    """The loop that policies decode with. Raises what `hold_batch` raises."""

    def __init__(self, model: Model, prompts: PromptBatch, options: DecodingOptions) -> None:
        self._model = model
        with own_config(model.hf, plain_config(options.new_tokens)):
            self._loop = hold_batch(model, prompts.ids, prompts.mask, options)
        self._steps = self._loop.steps()
        self.step()

    @property
    def count(self) -> int:
        """New tokens of each row so far."""
        return self._loop.new_tokens

    def step(self) -> None:
        """One step of the strategy for K and V."""
        if next(self._steps, None) is None:
            problem = next(iter(self._loop.problems.values()), "the generation ended early")
            raise OfframpError(problem, where=self._model.name, fix="leave this policy or prompt out")

    def finish(self, first_seconds: float, seconds: float) -> Decoded:
        """The loop's own record, and what it says that it ran."""
        for _ in self._steps:  # the last one lets go of the cache
            pass
        record = self._loop.result()
        return Decoded(
            tuple(tuple(row.tokens) for row in record.rows),
            first_seconds,
            seconds,
            claimed_layers=record.layers_executed,
            record=record,
        )


class PlainRunning(Running):
    """Plain greedy decoding, a forward of the whole model for each token.

    Everything is prepared by `generate()` itself, its cache included; a step is what its own greedy loop does
    for a token, without processors, stopping rules and streamers, of which there are none.
    """

    def __init__(self, model: Model, prompts: PromptBatch, new_tokens: int, **keywords: Any) -> None:
        self._model, self._prompt, self._rows = model, prompts.ids.shape[1], len(prompts.ids)
        self._ids = prompts.ids
        self._given: Mapping[str, Any] = {}
        with torch.no_grad(), own_config(model.hf, plain_config(new_tokens)):
            model.hf.generate(
                prompts.ids, attention_mask=prompts.attention_mask, custom_generate=self._take, **keywords
            )
        self._advance(first=True)

    def _take(
        self,
        model: Any,
        input_ids: Tensor,
        logits_processor: Any,
        stopping_criteria: Any,
        generation_config: Any,
        synced_gpus: bool = False,
        streamer: Any = None,
        **model_kwargs: Any,
    ) -> Tensor:
        """What transformers calls in the place of its own loop; see `_sample` there."""
        self._given = model_kwargs
        return input_ids

    @property
    def count(self) -> int:
        """New tokens of each row so far."""
        return self._ids.shape[1] - self._prompt

    def step(self) -> None:
        """One forward of the newest token."""
        self._advance(first=False)

    @torch.no_grad()
    def _advance(self, *, first: bool) -> None:
        hf = self._model.hf
        inputs = hf.prepare_inputs_for_generation(
            self._ids, next_sequence_length=None if first else 1, is_first_iteration=first, **self._given
        )
        outputs = hf(**inputs, return_dict=True)
        self._given = hf._update_model_kwargs_for_generation(outputs, self._given, is_encoder_decoder=False)
        logits = outputs.logits[:, -1].to(copy=True, dtype=torch.float32)
        self._ids = torch.cat([self._ids, logits.argmax(-1)[:, None]], dim=-1)

    def finish(self, first_seconds: float, seconds: float) -> Decoded:
        """Every layer ran once for each token that was fed; the last one never is."""
        fed = self._ids.shape[1] - 1
        tokens = self._ids[:, self._prompt :].tolist()
        self._given = {}
        return Decoded(
            tuple(map(tuple, tokens)),
            first_seconds,
            seconds,
            claimed_layers=self._rows * fed * self._model.layers,
        )
