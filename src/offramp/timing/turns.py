"""Contenders that take turns, block by block and prompt by prompt, until their questions are answered."""

from __future__ import annotations

import gc
import math
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np

from offramp.decoding.generation.prompts import PromptBatch
from offramp.defaults import FEWEST_VISITS, SEED
from offramp.timing.decoder import DecodedBatch, Decoder, Price, Stepping
from offramp.timing.ratios import Pair
from offramp.timing.results import A_A, PLAIN, Stopped
from offramp.timing.stopping import Budget, Looks, PairedTimes

BLOCK, BLOCK_SECONDS, FEWEST_BLOCKS = 8, 0.05, 3
"""Tokens of a block at most, the seconds that it takes about, and blocks of a decoding at least. Other work
on a shared machine comes and goes more slowly than such blocks: it slows all contenders down alike."""

T = TypeVar("T")


Visit = dict[str, DecodedBatch]
"""By contender's name."""


def pairs_of(other: DecodedBatch, own: DecodedBatch) -> list[Pair]:
    """Seconds per token of blocks of two contenders that were side by side.

    One pair, of the whole decodings, where they took unlike numbers of blocks: some decode at a stretch, and
    steps that give several tokens end blocks late.
    """
    if other.blocks and len(other.blocks) == len(own.blocks):
        return list(zip(other.blocks, own.blocks, strict=True))
    return [(other.seconds_per_token, own.seconds_per_token)]


def block_of(new_tokens: int, seconds_per_token: float = 0.0) -> int:
    """Tokens of a block, where so many are decoded and one takes so long."""
    by_time = (
        BLOCK if seconds_per_token * BLOCK <= BLOCK_SECONDS else round(BLOCK_SECONDS / seconds_per_token)
    )
    return max(1, min(BLOCK, by_time, (new_tokens - 1) // FEWEST_BLOCKS))


def visit(
    decoders: Sequence[Decoder],
    prompts: PromptBatch,
    new_tokens: int,
    order: random.Random,
    seconds_per_token: float = 0.0,
) -> Visit:
    """Decode one batch of prompts by all decoders, each on a cache of its own.

    In every round each contender takes one block, in a random order; one that cannot be stopped decodes all
    of its tokens between two blocks of a random round. A block ends after so many tokens (`block_of`) or,
    where a step gives several, some more. Prompts run before the first round. seconds_per_token: about, of
    plain decoding.

    Raises what a decoder raises.
    """
    block = block_of(new_tokens, seconds_per_token)
    rounds = math.ceil((new_tokens - 1) / block)
    at_a_stretch = [(order.randrange(rounds), decoder) for decoder in decoders if decoder.start is None]
    found: Visit = {}
    with _no_collection():
        # 1. All that can be stopped run the prompt.
        stepping = {
            decoder.name: Stepping(decoder.start, prompts, new_tokens)
            for decoder in _shuffled(decoders, order)
            if decoder.start is not None
        }
        # 2. In every round each takes a block; who cannot be stopped decodes all in the round that it drew.
        for place in range(rounds):
            turns: list[Stepping | Decoder] = [running for running in stepping.values() if not running.over]
            turns += [decoder for due, decoder in at_a_stretch if due == place]
            for turn in _shuffled(turns, order):
                if isinstance(turn, Stepping):
                    turn.take(block)
                else:
                    found[turn.name] = turn.decode(prompts, new_tokens)
        return found | {name: running.finish() for name, running in stepping.items()}


def noise_of(found: Visit) -> float | None:
    """Variance of a block's log-seconds, when what sets contenders apart, and rounds, is taken away.

    Other work that slows down a whole round, or all of one contender's, is no noise of their ratio. It is the
    same whichever contender was slowed down in a round. None for fewer than two contenders or rounds.
    """
    rounds = max((len(decoded.blocks) for decoded in found.values()), default=0)
    logs = np.log([decoded.blocks for decoded in found.values() if len(decoded.blocks) == rounds])
    if rounds < 2 or len(logs) < 2:
        return None
    left = logs - logs.mean(0) - logs.mean(1, keepdims=True) + logs.mean()
    return float((left**2).sum() / ((len(logs) - 1) * (rounds - 1)))


def _shuffled(items: Sequence[T], order: random.Random) -> list[T]:
    return order.sample(list(items), k=len(items))


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


def unpriced(decoder: Decoder, decoded: DecodedBatch) -> None:
    """Nothing has a price."""


RARELY = 2
"""A peer that decodes at a stretch takes part in one of so many visits, unless it is what early exit has to
be faster than; in a race so does a plain decoder's second time."""


@dataclass
class Turns:
    """Contenders that decode the same batches of prompts in turn, until their questions are answered."""

    decoders: Sequence[Decoder]
    given: str | None
    """The plain decoder that all others are held against; None for whichever turns out the fastest."""
    questions: Sequence[str]
    """Those whose answers are sought, by name."""
    prompts: Sequence[PromptBatch]
    new_tokens: int
    worth: float
    """The gain that matters, as a share."""
    rounds: int | None = None
    """How often each batch is visited, at most; None for no limit."""
    together: bool = False
    """Whether all of them are timed until all are answered; else each only until its own is."""
    races: bool = False
    """Whether a decoder without exits takes no further part once it is shown to be slower than another one:
    it can no longer be what early exit has to be faster than."""
    price: Price = unpriced
    seconds_per_token: float = 0.0
    """About, of plain decoding; blocks are as long as that says."""
    prices: Mapping[str, Sequence[float]] = field(default_factory=dict)
    """By contender: what a token of each of other documents took over one of the full model, by the same
    price, decoded with it before."""
    beaten: dict[str, str] = field(default_factory=dict)
    """Those, each with the one that is faster."""
    visits: list[tuple[int, Visit]] = field(default_factory=list)
    """The place of each batch that was visited, and what came of it."""
    answered: set[str] = field(default_factory=set)
    seconds: float = 0.0
    """Of all visits."""
    last_seconds: float = 0.0
    """Of the last one: a machine that slows down is noticed by it."""
    stopped: Stopped | None = None
    """Why nothing more is timed."""

    def __post_init__(self) -> None:
        """A series for each contender."""
        plain = [decoder.name for decoder in self.decoders if decoder.role == PLAIN]
        self._plain = plain if self.given is None else [self.given]
        at_depth = [decoder.name for decoder in self.decoders if decoder.full_depth]
        self._rivals = {*self._plain, *at_depth}
        self._stays = next((decoder.repeats for decoder in self.decoders if decoder.role == A_A), None)
        self.series = {
            decoder.name: PairedTimes(self._plain, self.beaten, self.prices.get(decoder.name, ()))
            for decoder in self.decoders
        }

    def take(
        self,
        budget: Budget,
        *,
        looks: bool = True,
        seed: int = SEED,
        visited: Callable[[], None] = lambda: None,
        afterwards: Callable[[int], float] = lambda prompts: 0.0,
        fewest: int = FEWEST_VISITS,
        beyond: float = 0.0,
    ) -> None:
        """Visit the prompts in turn until every question is answered, or the rounds or the budget are over.

        looks: whether it may end sooner. seed: of the order in which contenders take blocks. afterwards:
        seconds of the budget that are needed once so many prompts are decoded. fewest: visits that may take
        so many seconds `beyond` the budget.

        Raises what a decoder raises.
        """
        order, schedule = random.Random(seed), Looks() if looks else Looks(at=(), spends=())
        while self.stopped is None:
            # 1. All whose question is open decode the next batch of prompts.
            self._visit_next(order, budget)
            visited()
            # 2. Where a look is due, answers are looked for: who has one leaves.
            level = schedule.due(budget.used)
            if level is not None:
                self._look(level)
            # 3. It ends where everything is answered, or where the next visit would end too late.
            if self.stopped is None:
                count = len(self.visits)
                needed = max(self.seconds / count, self.last_seconds)
                needed += afterwards(min(count + 1, len(self.prompts)))
                if count < fewest:
                    needed -= beyond
                self._end_if_due(budget, schedule.last(), needed)

    def _visit_next(self, order: random.Random, budget: Budget) -> None:
        """Decode the next batch of prompts, in their order, around and around."""
        began = budget.spent
        place = len(self.visits) % len(self.prompts)
        taking_part = self._taking_part()
        found = visit(taking_part, self.prompts[place], self.new_tokens, order, self.seconds_per_token)
        prices = {decoder.name: self.price(decoder, found[decoder.name]) for decoder in taking_part}
        noise = noise_of(found)
        for decoder in taking_part:
            others = {*self._rivals, decoder.repeats} - {decoder.name}
            for other in sorted(name for name in others if name in found):
                pairs = pairs_of(found[other], found[decoder.name])
                priced = None
                if (theirs := prices[other]) is not None and (own := prices[decoder.name]) is not None:
                    priced = theirs, own
                self.series[decoder.name].add(other, place, pairs, priced, noise)
        self.visits.append((place, found))
        self.last_seconds = budget.spent - began
        self.seconds += self.last_seconds
        if self.races:
            self._drop_beaten()

    def _drop_beaten(self) -> None:
        """Note which decoders without exits are shown to be slower than another one, whose output is the full
        model's: whether others keep a floor is not known yet."""
        exact = [decoder.name for decoder in self.decoders if decoder.name in self._rivals and decoder.exact]
        for name in sorted(self._rivals - {self._stays, *self.beaten}):
            others = (other for other in exact if other not in {name, *self.beaten})
            faster = next((other for other in others if self.series[name].is_beaten_by(other)), None)
            if faster is not None:
                self.beaten[name] = faster

    def _taking_part(self) -> list[Decoder]:
        skipped = (set(self.answered) - self._rivals) | set(self.beaten)
        # Every second prompt, and in the next round the others.
        if sum(divmod(len(self.visits), len(self.prompts))) % RARELY:
            skipped |= {
                decoder.name
                for decoder in self.decoders
                if (decoder.start is None and decoder.role == "peer" and not decoder.without_exits)
                or (self.races and decoder.role == A_A)
            }
        return [decoder for decoder in self.decoders if decoder.name not in skipped]

    @property
    def plain(self) -> str:
        """The plain decoder that all are held against: the fastest so far, unless it was given."""
        first = self._plain[0]
        speeds = {name: self.series[name].ratio(first) for name in self._plain[1:] if name not in self.beaten}
        known = {name: speed.value for name, speed in speeds.items() if speed is not None}
        return max([first, *known], key=lambda name: known.get(name, 1.0))

    def _look(self, level: float) -> None:
        """See which questions are answered at an interval's level."""
        asked = [name for name in self.questions if name not in self.answered]
        for name in asked:
            self.series[name].look(level)
        over = {name for name in asked if self.series[name].is_over(self.worth)}
        if not self.together or len(over) == len(asked):
            self.answered |= over
        if self.answered.issuperset(self.questions):
            self._end("answered", level)

    def _end_if_due(self, budget: Budget, last: float, needed: float) -> None:
        """End where the rounds are over, or what is needed yet lasts too long. last: the level."""
        count = len(self.visits)
        if self.rounds is not None and count >= self.rounds * len(self.prompts):
            self._end("rounds", last)
        elif count >= FEWEST_VISITS and not budget.has(needed):
            self._end("seconds", last)

    def _end(self, why: Stopped, level: float) -> None:
        """The last look at all questions that are open. Others are looked at once, at the full level."""
        self.stopped = why
        for name in self.questions:
            if name not in self.answered:
                self.series[name].look(level)
