"""One visit to a batch of prompts: all contenders decode it, in blocks of a few tokens that take turns."""

from __future__ import annotations

import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

from offramp.decoding.bench.entrant import Decoded, Entrant, PromptBatch, Running, wait_for

BLOCK, SHORT_BLOCK = 8, 4
"""Tokens of a block, and of one where few tokens are decoded. A load on a shared machine comes and goes more
slowly than blocks do, so that it slows all contenders down alike."""
FEW_TOKENS = 32

T = TypeVar("T")


@dataclass(frozen=True)
class Timed:
    """One contender's part in a visit.

    blocks: seconds per new token (of all rows together) of each block, in order; empty if it decoded at a
    stretch. decoded: what came of it.
    """

    blocks: tuple[float, ...]
    decoded: Decoded


Visit = dict[str, Timed]
"""By contender's name."""


def log_ratios(above: Timed, below: Timed) -> list[float]:
    """log(seconds of the one / seconds of the other): of blocks that were side by side.

    One pair, of the whole decodings, where either decoded at a stretch.
    """
    if above.blocks and below.blocks:
        return [math.log(one / other) for one, other in zip(above.blocks, below.blocks, strict=False)]
    return [math.log(above.decoded.seconds_per_token / below.decoded.seconds_per_token)]


def visit(entrants: Sequence[Entrant], prompts: PromptBatch, new_tokens: int, order: random.Random) -> Visit:
    """Decode one batch of prompts by all entrants, each on a cache of its own.

    In every round each contender takes one block, in a random order; one that cannot be stopped decodes all
    of its tokens between two blocks of a random round. A block ends after so many tokens or, where a step
    gives several, some more. Prompts run before the first round.

    Raises what a decoder raises.
    """
    block = BLOCK if new_tokens > FEW_TOKENS else SHORT_BLOCK
    rounds = math.ceil((new_tokens - 1) / block)
    at_a_stretch = [(order.randrange(rounds), one) for one in entrants if one.start is None]
    found: Visit = {}
    with _no_collection():
        stepping = [_Stepping.of(one, prompts, new_tokens) for one in _shuffled(entrants, order) if one.start]
        for place in range(rounds):
            turns: list[Callable[[], None]] = [one.take(block) for one in stepping if not one.over]
            turns += [_whole(found, one, prompts, new_tokens) for due, one in at_a_stretch if due == place]
            for turn in _shuffled(turns, order):
                turn()
        for one in stepping:
            found[one.entrant.name] = one.finish()
    return found


def _shuffled(items: Sequence[T], order: random.Random) -> list[T]:
    return order.sample(list(items), k=len(items))


def _whole(found: Visit, entrant: Entrant, prompts: PromptBatch, new_tokens: int) -> Callable[[], None]:
    def turn() -> None:
        found[entrant.name] = Timed((), entrant.decode(prompts, new_tokens))

    return turn


@dataclass
class _Stepping:
    """A contender between two blocks. seconds: of the blocks so far."""

    entrant: Entrant
    prompts: PromptBatch
    running: Running
    new_tokens: int
    first_seconds: float
    seconds: float = 0.0
    blocks: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, entrant: Entrant, prompts: PromptBatch, new_tokens: int) -> _Stepping:
        assert entrant.start is not None  # those that decode at a stretch are not among them
        started = time.perf_counter()
        running = entrant.start(prompts, new_tokens)
        wait_for(prompts)
        return cls(entrant, prompts, running, new_tokens, time.perf_counter() - started)

    @property
    def over(self) -> bool:
        return self.running.count >= self.new_tokens

    def take(self, block: int) -> Callable[[], None]:
        def turn() -> None:
            first = self.running.count
            until = first + block
            if self.new_tokens - until < block / 2:  # a rest too short for a block of its own
                until = self.new_tokens
            started = time.perf_counter()
            while self.running.count < until:
                self.running.step()
            wait_for(self.prompts)
            seconds = time.perf_counter() - started
            tokens = (self.running.count - first) * len(self.prompts.ids)
            self.seconds += seconds
            self.blocks.append(seconds / tokens)

        return turn

    def finish(self) -> Timed:
        return Timed(tuple(self.blocks), self.running.finish(self.first_seconds, self.seconds))


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
