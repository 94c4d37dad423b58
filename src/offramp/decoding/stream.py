"""A plain decoding loop with a cache: sequences side by side, one token each per step."""

from __future__ import annotations

import copy
import inspect
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from offramp.decoding.stopwatch import StepTimes, Stopwatch
from offramp.errors import ModelError
from offramp.models.caches import held_tensors, is_cache
from offramp.models.difference import largest_difference, largest_finite
from offramp.models.discovery import UNFIT_ERRORS, probe_ids
from offramp.models.model import Model

CHECKED_TOKENS = 7
# Of the largest logit. Wide: a cache that is not read at all is what must be found.
TOLERANCE = {"float32": 1e-2, "bfloat16": 5e-2}


@dataclass
class Stream:
    """`batch` sequences that a model decodes greedily, all of one length.

    cache: transformers' own, after `length` tokens; keyword: under which the model takes it and returns it.
    tokens: int64 [batch, 1], the next ones to be fed.
    """

    model: Model
    keyword: str
    cache: Any
    tokens: Tensor
    length: int

    @property
    def batch(self) -> int:
        """Sequences side by side."""
        return len(self.tokens)

    def step(self, stopwatch: Stopwatch) -> StepTimes:
        """Decode one token of every sequence, as a plain loop does, and time it.

        Raises ModelError if the model fails, or if not every layer runs once.
        """
        started, returned, chosen, ended = self._decode()
        if stopwatch.executed != self.model.layers:
            raise ModelError(
                f"a decoding step ran {stopwatch.executed} layers instead of {self.model.layers}",
                where=self.model.name,
                fix="this model's layers cannot be timed within a step",
            )
        return stopwatch.times(self.length - 1, started, returned, chosen, ended)

    def whole_step(self) -> StepTimes:
        """The same without a clock inside it, timed as a whole. Raises ModelError if the model fails."""
        started, _, _, ended = self._decode()
        return StepTimes(self.length - 1, (), 0.0, {}, ended - started)

    def _decode(self) -> tuple[float, float, float, float]:
        """One token of every sequence: when it began, returned its logits, had its token, and ended."""
        with torch.no_grad(), failing_clearly(self.model, self.length):
            started = time.perf_counter()
            output = self.model.hf(input_ids=self.tokens, use_cache=True, **{self.keyword: self.cache})
            returned = time.perf_counter()
            tokens = output.logits[:, -1].argmax(-1, keepdim=True)
            chosen = time.perf_counter()
            tokens.tolist()  # a loop looks for end tokens
            ended = time.perf_counter()
        self.cache, self.tokens = output[self.keyword], tokens
        self.length += 1
        return started, returned, chosen, ended


def cache_keyword(model: Model) -> str:
    """Under which name a model takes a cache and returns it (see `find_cache_keyword`)."""
    return find_cache_keyword(
        model.hf, name=model.name, dtype=model.dtype, context_length=model.context_length
    )


def find_cache_keyword(hf: Any, *, name: str, dtype: str, context_length: int | None = None) -> str:
    """Under which name a transformers model takes a cache and returns it, found by decoding a token with one.

    Raises ModelError if the model keeps no cache, or if a token decoded with it gives other logits than the
    whole sequence does.
    """
    length = min(CHECKED_TOKENS, context_length or CHECKED_TOKENS)
    ids = probe_ids(hf, length)
    places: dict[str, Tensor] = {}
    if "position_ids" in inspect.signature(hf.forward).parameters:
        # As generate() does: some families count every block from 0 if they are not told.
        places["position_ids"] = torch.arange(length, device=ids.device)[None]
    prompt, last = (
        {"input_ids": ids[:, part], **{name: value[:, part] for name, value in places.items()}}
        for part in (slice(length - 1), slice(length - 1, length))
    )
    try:
        with torch.no_grad():
            whole = hf(input_ids=ids, use_cache=False, **places).logits[:, -1].float()
            output = hf(use_cache=True, **prompt)
            keyword = next((key for key, value in output.items() if is_cache(value)), None)
            if keyword is None:
                raise _no_cache(name, "it returns none")
            step = hf(use_cache=True, **last, **{keyword: output[keyword]})
    except UNFIT_ERRORS as error:
        raise _no_cache(name, f"{type(error).__name__}: {error}") from error
    difference = largest_difference(step.logits[:, -1], whole)
    if not difference <= TOLERANCE[dtype] * largest_finite(whole):
        raise _no_cache(name, f"its logits with a cache differ by {difference:.3g}")
    return str(keyword)


def _no_cache(name: str, why: str) -> ModelError:
    return ModelError(
        f"the model cannot decode token by token with a cache: {why}",
        where=name,
        fix="trace and replay it, and judge it on a roofline profile: offramp list hardware",
    )


@contextmanager
def failing_clearly(model: Model, position: int) -> Iterator[None]:
    """Errors of a model that decodes at some position as ModelError."""
    try:
        yield
    except UNFIT_ERRORS as error:
        raise ModelError(
            f"decoding at position {position} fails: {type(error).__name__}: {error}",
            where=model.name,
            fix="judge the model on a roofline profile instead: offramp list hardware",
        ) from error


def prompt_ids(model: Model, batch: int, length: int) -> Tensor:
    """Random tokens, the same at every call: int64 [batch, length]."""
    generator = torch.Generator().manual_seed(length)
    return torch.randint(model.shape.vocabulary_size, (batch, length), generator=generator).to(
        model.hf.device
    )


def prefill(model: Model, keyword: str, batch: int, length: int) -> Stream:
    """A stream whose cache holds `length` random tokens.

    Raises ModelError if the model cannot read so many.
    """
    with torch.no_grad(), failing_clearly(model, length):
        output = model.hf(input_ids=prompt_ids(model, batch, length), use_cache=True)
    return Stream(model, keyword, output[keyword], output.logits[:, -1].argmax(-1, keepdim=True), length)


def widen(stream: Stream, batch: int) -> Stream:
    """`batch` sequences with the past of a stream of one, each with another next token.

    A cache that cannot be repeated is filled anew.
    """
    cache = copy.deepcopy(stream.cache)
    tokens = prompt_ids(stream.model, batch, 1)
    if batch > 1:
        try:
            cache.batch_repeat_interleave(batch)
            whole = all(len(tensor) == batch for tensor in held_tensors(nn.Module(), [cache]))
        except UNFIT_ERRORS:
            whole = False
        if not whole:
            return prefill(stream.model, stream.keyword, batch, stream.length)
    return Stream(stream.model, stream.keyword, cache, tokens, stream.length)
