"""A policy at work in decoding: asked at its exits about the tokens that are decoded now."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from offramp.decoding.engine.meter import Meter
from offramp.decoding.exit_readout.reader import Reader
from offramp.policies.policy import ExitPolicy, Rows, Tokens
from offramp.policies.policy_cost import gives_output
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
        asked = self.running & self._decider.checks(exit)
        if not asked.any():
            return asked
        names, facts = self.needs[exit], {}
        if names:
            read = self.reader.read(exit, names, hidden, before)
            facts = {name: _spread(values, rows, len(asked)) for name, values in read.items()}
            for kind in probes_of(names):
                self._meter.count("probe", exit, len(hidden), kind)
            if gives_output(names):
                self._answered.add(exit)
        leaving = asked & self._decider.decide(exit, facts)
        self.own[leaving] = exit
        self.running = self.running & ~leaving
        self._meter.lap("probes" if names else "overhead")
        return leaving

    def logits(self, exit: int, hidden: Tensor, leaving: Tensor | None = None) -> Tensor:
        """The logits of an exit below L, charged as its head unless a probe there gave them.

        Of exit L too, where the policy reads that off the short list (`short_head`). hidden: as it was given
        to `at`. leaving: bool [rows], those whose logits are wanted, None for all.
        """
        if exit in self._answered:
            found = self.reader.logits(exit, hidden)
            found = found if leaving is None else found[leaving]
        else:
            hidden = hidden if leaving is None else hidden[leaving]
            self._meter.count("short head" if self.policy.short_list else "exit head", exit, len(hidden))
            found = self.reader.logits(exit, hidden)
        self._meter.lap("heads")
        return found

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
