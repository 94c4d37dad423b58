"""Contenders that take turns: one untimed pass that counts, then timed rounds in random order."""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from offramp.decoding.bench.contenders import FAILURES, why
from offramp.decoding.bench.counting import LayerCount
from offramp.decoding.bench.entrant import Decoded, Entrant, PromptBatch, left_out
from offramp.decoding.bench.memory import start_peak
from offramp.decoding.bench.results import Contender
from offramp.errors import ModelError, OfframpError
from offramp.models.stack import ExitStack

FEWEST_ROUNDS = 2


@dataclass(frozen=True)
class Group:
    """Contenders that decode the same prompts. rounds: how often each decodes every batch of them."""

    entrants: Sequence[Entrant]
    prompts: Sequence[PromptBatch]
    new_tokens: int
    rounds: int


Samples = dict[str, list[Decoded]]
"""Timed decodings by name, in the order of rounds and batches: equal places were side by side."""


@dataclass(frozen=True)
class Trial:
    """One untimed decoding of the first batches of prompts, all of them unless said otherwise.

    counted: rows times layers that hooks saw, by batch. peak_memory_bytes: the largest of any batch.
    """

    decoded: tuple[Decoded, ...]
    counted: tuple[int, ...]
    peak_memory_bytes: int | None


def try_out(
    entrants: Sequence[Entrant],
    prompts: Sequence[PromptBatch],
    new_tokens: int,
    stack: ExitStack,
    turn_done: Callable[[], None],
    *,
    warm_up_tokens: int,
) -> tuple[dict[str, Trial], list[Contender]]:
    """Trials by name, and the contenders that failed in theirs. warm_up_tokens: decoded before, none if 0.

    Raises what a required one raises; an error of transformers' as a ModelError.
    """
    trials, failed = {}, []
    for entrant in entrants:
        try:
            # What a decoder sets up once (which layers can be cut, say) would be counted as layers of its
            # first tokens.
            if warm_up_tokens:
                entrant.decode(prompts[0], min(new_tokens, warm_up_tokens))
            trials[entrant.name] = _trial(entrant, prompts, new_tokens, stack, turn_done)
        except OfframpError as error:
            if entrant.required:
                raise
            failed.append(left_out(entrant.name, entrant.role, why(error)))
        except FAILURES as error:
            if entrant.required:
                raise ModelError(
                    f"{entrant.name} fails on this model: {why(error)}",
                    where=str(stack.hf.config.name_or_path),
                    fix="this model cannot be timed; trace and replay it instead",
                ) from error
            failed.append(left_out(entrant.name, entrant.role, why(error)))
    return trials, failed


def _trial(
    entrant: Entrant,
    prompts: Sequence[PromptBatch],
    new_tokens: int,
    stack: ExitStack,
    turn_done: Callable[[], None],
) -> Trial:
    decoded, counted, peaks = [], [], []
    device = torch.device(prompts[0].ids.device)
    for batch in prompts:
        count = LayerCount(stack)
        peak = start_peak(device)
        with count.attached():
            decoded.append(entrant.decode(batch, new_tokens))
        peaks.append(peak())
        counted.append(count.rows)
        turn_done()
    known = [size for size in peaks if size is not None]
    return Trial(tuple(decoded), tuple(counted), max(known, default=None))


def take_turns(
    groups: Sequence[Group],
    *,
    seed: int = 0,
    budget_seconds: float | None = None,
    turn_done: Callable[[], None] = lambda: None,
) -> list[Samples | OfframpError]:
    """Timed decodings of every group, or what made one of its contenders fail.

    Within each round every batch is decoded by all entrants of its group in a random order of its own, and
    the groups' batches take turns, so that a machine that slows down slows all of them down.
    budget_seconds: no round begins that would probably end later; FEWEST_ROUNDS are always made.
    """
    order = random.Random(seed)
    found: list[Samples | OfframpError] = [{one.name: [] for one in group.entrants} for group in groups]
    began = time.monotonic()
    for done in range(max((group.rounds for group in groups), default=0)):
        used = time.monotonic() - began
        if budget_seconds is not None and done >= FEWEST_ROUNDS and used * (done + 1) / done > budget_seconds:
            break
        for place in range(max(len(group.prompts) for group in groups)):
            for index, group in enumerate(groups):
                samples = found[index]
                over = done >= group.rounds or place >= len(group.prompts)
                if over or isinstance(samples, OfframpError):
                    continue
                try:
                    _one_turn(group, group.prompts[place], order, samples, turn_done)
                except OfframpError as error:  # the other groups still count
                    found[index] = error
    return found


def _one_turn(
    group: Group, batch: PromptBatch, order: random.Random, samples: Samples, turn_done: Callable[[], None]
) -> None:
    """One batch of prompts, decoded by all entrants of its group."""
    with _no_collection():
        for entrant in order.sample(list(group.entrants), k=len(group.entrants)):
            samples[entrant.name].append(entrant.decode(batch, group.new_tokens))
            turn_done()


@contextmanager
def _no_collection() -> Iterator[None]:
    """Garbage collected before instead of meanwhile: what the last decodings left, no full search."""
    was = gc.isenabled()
    gc.collect(1)
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()
