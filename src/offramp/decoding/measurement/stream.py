"""Sequences side by side whose cache is filled, ready for the next step of a decoding loop."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from offramp.errors import ModelError
from offramp.models.caches import held_tensors
from offramp.models.discovery import UNFIT_ERRORS
from offramp.models.model import Model


@dataclass
class Stream:
    """`batch` sequences that a model decodes greedily, all of one length; see `LoopSteps` for their steps.

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
