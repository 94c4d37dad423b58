"""The interface of KV strategies, and the policy that they ask: one step of all sequences at a time."""

from __future__ import annotations

import copy
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from offramp.decoding.engine.engine import Engine, Meter
from offramp.decoding.engine.sequences import Sequences
from offramp.decoding.exit_readout.reader import Reader
from offramp.decoding.options import DecodingOptions
from offramp.decoding.strategies.next_token import Advance, Chooser
from offramp.policies.kv import KeyValue
from offramp.policies.policy import ExitPolicy, Rows, Tokens
from offramp.policies.prices import gives_output
from offramp.policies.signals import probed_at_last, probes_of

Exits = NDArray[np.int64]


class PolicyDriver:
    """Asks one policy about one token of every sequence at a time.

    stops: the exits below L where it is asked, ascending. own: int64 [batch], where each row's own policy
    lets the current token leave, L as long as it has not. running: bool [batch], rows that have not left.
    finished: bool [batch], rows that are over: they hold nobody back. present: int64, the rows that are still
    in the batch, ascending; None for all.
    """

    def __init__(
        self,
        policy: ExitPolicy,
        layers: int,
        batch: int,
        reader: Reader,
        meter: Meter,
        document_facts: Mapping[str, NDArray[np.float64]] | None = None,
    ) -> None:
        self.policy = policy
        self.layers = layers
        self.reader = reader
        self.needs = dict(policy.needs(layers))
        self.stops = tuple(self.needs)
        self.finished: Rows = np.zeros(batch, dtype=np.bool_)
        self.present: NDArray[np.int64] | None = None
        self._meter = meter
        self._document_facts = dict(document_facts or {})
        self._decider = policy.decider(layers, batch)
        self._index = np.zeros(batch, dtype=np.int64)
        self._answered: set[int] = set()

    def begin(self) -> None:
        """A new token of every sequence."""
        self._decider.begin(Tokens(self._index, self._document_facts))
        self.reader.begin()
        self.own: Exits = np.full(len(self._index), self.layers, dtype=np.int64)
        self.running: Rows = ~self.finished
        self.own[self.finished] = self.stops[0] if self.stops else self.layers
        self._answered = set()

    def at(
        self, exit: int, hidden: Tensor, before: Tensor | None, rows: NDArray[np.int64] | None = None
    ) -> Rows:
        """Ask at one exit; which rows leave here: bool [batch].

        hidden, before: output and input of layer `exit` [rows, 1, hidden]. rows: which sequences these are,
        None for all that are present. Every given row is probed, and charged, as soon as one of them asks.
        """
        rows = self.present if rows is None else rows
        asking = self.running & self._decider.checks(exit)
        if not asking.any():
            return asking
        names, facts = self.needs[exit], {}
        if names:
            read = self.reader.read(exit, names, hidden, before)
            facts = {name: _spread(values, rows, len(asking)) for name, values in read.items()}
            for kind in probes_of(names):
                self._meter.count("probe", exit, len(hidden), kind)
            if gives_output(names, short_list=self.policy.short_list):
                self._answered.add(exit)
        leaving = asking & self._decider.decide(exit, facts)
        self.own[leaving] = exit
        self.running = self.running & ~leaving
        self._meter.lap("probes" if names else "overhead")
        return leaving

    def logits(self, exit: int, hidden: Tensor, leaving: Tensor | None = None) -> Tensor:
        """The logits of an exit below L, charged as its head unless a probe there gave them.

        Of exit L too, where the policy reads that off the short list (`short_head`). hidden: as it was given
        to `at`. leaving: int64, the rows whose logits are wanted, None for all.
        """
        if exit in self._answered:
            logits = self.reader.logits(exit, hidden)
            logits = logits if leaving is None else logits[leaving]
        else:
            hidden = hidden if leaving is None else hidden[leaving]
            self._meter.count("short head" if self.policy.short_list else "exit head", exit, len(hidden))
            logits = self.reader.logits(exit, hidden)
        self._meter.lap("heads")
        return logits

    def end(
        self,
        logits: Tensor | None = None,
        hidden: Tensor | None = None,
        before: Tensor | None = None,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        """The token is done.

        logits, hidden, before: at exit L [rows, ...], of the sequences that ran so far: `rows`, None for all
        that are present.
        """
        rows = self.present if rows is None else rows
        final: dict[str, NDArray[Any]] = {}
        names = self.policy.final_facts
        if names and logits is not None and hidden is not None:
            read = self.reader.final(names, logits, hidden, before)
            final = {name: _spread(values, rows, len(self.own)) for name, values in read.items()}
            for kind in probes_of(probed_at_last(names)):
                self._meter.count("probe", self.layers, len(hidden), kind)
            self._meter.lap("probes")
        elif names:
            final = {name: np.zeros(len(self.own)) for name in names}
        self._decider.end(self.own, final)
        self._index = self._index + 1

    def state(self) -> Any:
        """What `restore` goes back to: all that the policy remembers."""
        remembered = copy.deepcopy(self._decider) if self.policy.remembers else None
        return remembered, self._index.copy()

    def restore(self, state: Any) -> None:
        """Forget every token since `state` was taken, which may be restored several times."""
        remembered, index = state
        if remembered is not None:
            self._decider = copy.deepcopy(remembered)
        self._index = index.copy()


def _spread(values: NDArray[Any], rows: NDArray[np.int64] | None, batch: int) -> NDArray[Any]:
    """Values of some rows in the places of all; others hold zeros."""
    if rows is None:
        return values
    spread = np.zeros(batch, dtype=values.dtype)
    spread[rows] = values
    return spread


@dataclass(frozen=True)
class Gear:
    """What a strategy works with during one generation."""

    options: DecodingOptions
    sequences: Sequences
    """Fed up to the prompt's end, which has run all layers."""
    driver: PolicyDriver
    """The policy at work, and the exits' readings."""
    chooser: Chooser
    """From logits to tokens (processors, sampling, forced tokens)."""
    tokens: Callable[[], Tensor]
    """Of the whole batch so far, int64 [batch, length], also where sequences hold the rows that are not over
    only."""
    limit: int | None = None
    """New tokens that are wanted in all, None for no limit."""
    end_tokens: tuple[int, ...] = ()
    """Those that end a row: both end a round of drafts early."""

    @property
    def room(self) -> int:
        """Tokens that are still to be fed: the last one that is wanted never is."""
        if self.limit is None:
            return sys.maxsize
        return self.limit - 1 - (self.sequences.length - self.chooser.prompt)

    @property
    def engine(self) -> Engine:
        """Of the sequences."""
        return self.sequences.engine

    @property
    def meter(self) -> Meter:
        """Likewise."""
        return self.sequences.meter


@dataclass(frozen=True)
class Conditions:
    """Under which a strategy is to work, known before anything runs."""

    options: DecodingOptions
    layers: int
    dtype: str
    """Of the model."""
    batch: int = 1
    """Sequences side by side."""
    processors: tuple[Any, ...] = ()
    """Transformers' logits processors in their order."""
    padded: bool = False
    """Some row has padding on its left."""


class Strategy(ABC):
    """One way to let later tokens find the K and V of skipped layers.

    of: what is declared of it (name, promises, charge). drops: whether rows that are over can leave the batch
    between two steps (see `keep_rows`). drafted, accepted: drafts made and kept so far, of strategies that
    draft.

    A strategy counts its own items, "overhead" included: once for each step, with the rows that it advances.
    A non-finite logit ends the generation by itself: `Transcript` raises for a broken `Choice`.
    """

    of: ClassVar[KeyValue]
    drops: ClassVar[bool] = True

    drafted: int = 0
    accepted: int = 0

    def __init__(self, gear: Gear) -> None:
        self.gear = gear

    def __init_subclass__(cls, *, of: KeyValue | None = None) -> None:
        super().__init_subclass__()
        if of is not None:
            cls.of = of

    @classmethod
    def check(cls, conditions: Conditions) -> None:
        """Raise InputError or PolicyError for conditions that it cannot work under."""
        cls.of.admits(conditions.options.policy, conditions.layers, ())

    # Not abstract: most strategies hold nothing between two steps.
    def keep_rows(self, rows: Tensor) -> None:  # noqa: B027
        """The sequences now hold these of their rows only, int64; so must all that waits."""

    @abstractmethod
    def advance(self, tokens: Tensor) -> Advance:
        """Feed the last tokens, int64 [batch, 1], which have run no layer yet, and predict what follows.

        Tokens and what is returned are of the whole batch, whichever rows are present.
        """
