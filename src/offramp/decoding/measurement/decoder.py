"""Who takes part in a timing: a way to decode prompts, and what one decoding gave."""

from __future__ import annotations

import math
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from offramp.decoding.measurement.results import Contender
from offramp.errors import InputError

PADDING = 0


@dataclass(frozen=True)
class PromptBatch:
    """Prompts that are decoded side by side.

    ids: int64 [batch, positions], padded on the left. mask: int64 [batch, positions], 0 = padding, None
    without any.
    """

    ids: Tensor
    mask: Tensor | None

    @property
    def attention_mask(self) -> Tensor:
        """The mask, all ones without padding."""
        return torch.ones_like(self.ids) if self.mask is None else self.mask


def batches_of(prompts: Sequence[Sequence[int]], batch: int, device: Any = "cpu") -> tuple[PromptBatch, ...]:
    """The prompts in order, `batch` at a time; the last batch is filled up from the first prompts.

    Raises InputError without prompts, for an empty one, or a batch below 1.
    """
    if batch < 1:
        raise InputError(f"a batch of {batch} is not possible", where="batch", fix="give 1 or more")
    if not prompts:
        raise InputError("there are no prompts", where="prompts", fix="give at least one")
    for place, prompt in enumerate(prompts):
        if not len(prompt):
            raise InputError(
                f"prompt {place} has no tokens", where="prompts", fix="give every prompt a token or more"
            )
    groups = math.ceil(len(prompts) / batch)
    filled = [prompts[place % len(prompts)] for place in range(groups * batch)]
    return tuple(_padded(filled[place : place + batch], device) for place in range(0, len(filled), batch))


def _padded(prompts: Sequence[Sequence[int]], device: Any) -> PromptBatch:
    longest = max(len(prompt) for prompt in prompts)
    ids = torch.full((len(prompts), longest), PADDING, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, longest - len(prompt) :] = torch.tensor(list(prompt), dtype=torch.long)
        mask[row, longest - len(prompt) :] = 1
    return PromptBatch(ids.to(device), None if bool(mask.all()) else mask.to(device))


@dataclass(frozen=True)
class Decoded:
    """What decoding one batch of prompts gave.

    tokens: the new tokens of each row. first_seconds: until the first new tokens were out, `first_tokens` a
    row (an assisted first step gives several). seconds: from then to the end. claimed_layers: rows times
    layers that it says it ran, the prompt's included; None where it says nothing. record: the decoder's own
    record, None if it keeps none.
    """

    tokens: tuple[tuple[int, ...], ...]
    first_seconds: float
    seconds: float
    first_tokens: int = 1
    claimed_layers: int | None = None
    record: Any = None

    @property
    def seconds_per_token(self) -> float:
        """Seconds per new token of all rows, those out at first left apart."""
        return self.seconds / (len(self.tokens) * (len(self.tokens[0]) - self.first_tokens))


Decode = Callable[[PromptBatch, int], Decoded]
"""Decodes so many new tokens after each prompt, greedily, whatever end tokens come."""


class Running(ABC):
    """One decoding under way, which stands still between two steps. The prompt has run."""

    @property
    @abstractmethod
    def count(self) -> int:
        """New tokens of each row so far."""

    @abstractmethod
    def step(self) -> None:
        """Decode a token of each row, or several. Raises OfframpError if nothing sound comes of it."""

    @abstractmethod
    def finish(self, first_seconds: float, seconds: float) -> Decoded:
        """What came of it in so many seconds, once all new tokens are there."""


Start = Callable[[PromptBatch, int], Running]
"""Runs the prompts, to decode so many new tokens after each in steps, greedily, whatever end tokens come."""


@dataclass(frozen=True)
class Decoder:
    """One way to decode.

    name, role, output_must_match: as in `offramp.decoding.measurement.results.Contender`. decode: at a
    stretch. start: in steps, None where that is not possible. required: whether nothing can be measured
    without it; others are left out where they fail. note: what must be said of it beside its figures.
    """

    name: str
    role: str
    decode: Decode
    start: Start | None = None
    output_must_match: bool = False
    required: bool = False
    note: str | None = None


def decoding_in_steps(start: Start) -> Decode:
    """The steps of one decoding after each other."""

    def decode(prompts: PromptBatch, new_tokens: int) -> Decoded:
        started = time.perf_counter()
        running = start(prompts, new_tokens)
        wait_for(prompts)
        first = time.perf_counter()
        while running.count < new_tokens:
            running.step()
        wait_for(prompts)
        return running.finish(first - started, time.perf_counter() - first)

    return decode


def wait_for(prompts: PromptBatch) -> None:
    """Until the accelerator that the prompts are on has done all that it was told."""
    if prompts.ids.is_cuda:
        torch.cuda.synchronize(prompts.ids.device)


Candidates = Iterator[Decoder | Contender]
"""Entrants, and contenders that are left out, with their reasons."""


def left_out(name: str, role: str, why: str) -> Contender:
    """A contender that is not timed."""
    return Contender(name, role, left_out=why)
