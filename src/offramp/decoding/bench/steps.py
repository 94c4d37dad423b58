"""Decoders that can be stopped after any token: our loop, and plain decoding as `generate()` does it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from offramp.decoding.bench.entrant import Decoded, PromptBatch, Running
from offramp.decoding.bench.generating import own_config, plain_config
from offramp.decoding.generation.generate import hold_batch
from offramp.decoding.options import DecodingOptions
from offramp.errors import OfframpError
from offramp.models.model import Model


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
