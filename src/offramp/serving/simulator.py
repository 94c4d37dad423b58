"""A server with continuous batching, step by step: rows join and leave at every step, prompts in pieces.

Steps between two events (a request joins, one is done) are worked out at once: their rows stay the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.serving.arrivals import Demand, Integers
from offramp.serving.contenders import LoadContender
from offramp.serving.prices import Places, Seconds, StepPrices
from offramp.serving.request import Rule

BLOCK = 256
"""Steps that are worked out at once, at most."""


@dataclass(frozen=True)
class ServerLimits:
    """How a server serves: requests side by side and tokens of a step at most, and when rows leave.

    padded: attention reads the longest row's context for every row.
    """

    rows: int = 16
    budget: int = 256
    rule: Rule = "gain"
    padded: bool = False


@dataclass(frozen=True)
class ServedDemand:
    """How a demand was served.

    times: of each request when each of its tokens was there, float64 [output]. rung, layers, lost: int64
    [requests], which rung it had, layers executed for its tokens after the first, and how many of those are
    not the full model's (None where nobody judged). busy: seconds of all steps. row_steps: rows that decoded,
    over all steps.
    """

    demand: Demand
    times: tuple[Seconds, ...]
    rung: Integers
    layers: Integers
    lost: Integers | None
    busy: float
    steps: int
    row_steps: int


def run_steps(
    prices: StepPrices, rule: Rule, own: Integers, asks: NDArray[np.bool_], context: Seconds
) -> tuple[Seconds, Integers]:
    """Seconds of steps of the same rows, float64 [steps], and where each row leaves, int64 [rows, steps].

    own: int64 [rows, steps], where each row's policy lets it go. asks: bool [stops, rows], who may be asked.
    context: float64 [steps].

    A row that was let go, and did not leave because it would have cost time, is not asked again: it leaves at
    the next stop of its policy where that saves some. Where asking does not pay nobody is asked
    (`StepPrices.worth_asking`).
    """
    rows, steps = own.shape
    at = Places.of_contexts(prices.contexts, context)
    seconds = np.full(steps, prices.overhead[rows])
    exits = np.full((rows, steps), prices.depth, dtype=np.int64)
    going, free = np.ones((rows, steps), dtype=np.bool_), np.zeros((rows, steps), dtype=np.bool_)
    left = np.full(steps, rows)
    for place in range(len(prices.stops) + 1):
        gone = rows - left
        seconds += at.of(prices.layers[place], left)
        if place:  # nobody has left before the first stop
            seconds += at.of(prices.repair[place], gone)
        if place == len(prices.stops):
            break
        own_stop, before = asks[place][:, None], free
        asked = going & ~free & own_stop
        if rule == "gain":
            asked &= prices.worth_asking[place][asked.sum(0)]
        seconds += prices.probe[place][asked.sum(0)]
        free = free | (asked & (own <= prices.stops[place]))
        wants = going & free & own_stop
        if not wants.any():
            continue
        leaving = wants.sum(0)
        leave = (leaving > 0) & prices.leave(rule, place, left, leaving, gone, at)
        unread = (wants & before).sum(0) if prices.answered[place] else leaving
        seconds += np.where(leave, prices.exit_head[place][unread], 0.0)
        exits[wants & leave] = prices.stops[place]
        going &= ~(wants & leave)
        left = going.sum(0)
    return seconds + prices.final[left], exits


@dataclass(eq=False, slots=True)
class _BusyRow:
    """A request that is being served; `done` tokens of its answer are there."""

    place: int
    prompt: int
    output: int
    exits: Integers
    kept: NDArray[np.bool_]
    rung: int
    filled: int = 0
    done: int = 0


def simulate(
    demand: Demand,
    answers: Sequence[Integers],
    contender: LoadContender,
    prices: StepPrices,
    limits: ServerLimits,
) -> ServedDemand:
    """Serve a demand.

    answers: of every request the replayed tokens of its answer. A request takes a row when it is its turn and
    a row is free; its prompt runs in as many pieces as the budget asks for, at full depth, and its first
    token is there with the last of them.
    """
    return _Server(demand, answers, contender, prices, limits).run()


class _Server:
    def __init__(
        self,
        demand: Demand,
        answers: Sequence[Integers],
        contender: LoadContender,
        prices: StepPrices,
        limits: ServerLimits,
    ) -> None:
        self.demand, self.answers, self.contender = demand, answers, contender
        self.prices, self.limits = prices, limits
        self.now, self.next, self.busy, self.steps, self.row_steps = 0.0, 0, 0.0, 0, 0
        self.waiting: deque[int] = deque()
        self.rows: list[_BusyRow] = []
        self.times = [np.empty(int(output)) for output in demand.output]
        self.rung, self.layers, self.lost = np.zeros((3, len(demand)), dtype=np.int64)
        self.exits = np.array([*contender.stops, contender.layers])
        having = [[stop in rung.stops for stop in contender.stops] for rung in contender.rungs]
        self.asks = np.array(having, dtype=np.bool_).T
        # Of each rung where the exits of all lie among its own, to know what is kept there.
        self.kept_at = [np.searchsorted([*rung.stops, rung.layers], self.exits) for rung in contender.rungs]

    def run(self) -> ServedDemand:
        arrival = self.demand.arrival
        while self.next < len(arrival) or self.waiting or self.rows:
            while self.next < len(arrival) and arrival[self.next] <= self.now:
                self.waiting.append(self.next)
                self.next += 1
            if not self.waiting and not self.rows:
                self.now = float(arrival[self.next])
            elif any(row.filled < row.prompt for row in self.rows) or (self.waiting and self._has_room()):
                self._step_with_prompts()
            else:
                self._steps()
            self.rows = [row for row in self.rows if row.done < row.output]
        counts = (self.busy, self.steps, self.row_steps)
        return ServedDemand(self.demand, tuple(self.times), self.rung, self.layers, self.lost, *counts)

    def _has_room(self) -> bool:
        return len(self.rows) < self.limits.rows

    def _admit(self) -> _BusyRow:
        rung = self.contender.rung_at(len(self.waiting) + len(self.rows))
        place = self.waiting.popleft()
        own, tokens = self.contender.rungs[rung], self.answers[place]
        lengths = int(self.demand.prompt[place]), int(self.demand.output[place])
        self.rows.append(_BusyRow(place, *lengths, own.exits[tokens], own.kept[:, tokens], rung))
        self.rung[place] = rung
        return self.rows[-1]

    def _step_with_prompts(self) -> None:
        """One step: a token of each row that decodes, then pieces of prompts, those begun first."""
        ready = [row for row in self.rows if row.filled == row.prompt]
        filling = deque(row for row in self.rows if row.filled < row.prompt)
        budget, seconds, fresh = self.limits.budget - len(ready), 0.0, []
        while budget > 0 and (filling or (self.waiting and self._has_room())):
            row = filling.popleft() if filling else self._admit()
            piece = min(budget, row.prompt - row.filled)
            seconds += self.prices.prompt(piece, row.filled)
            row.filled += piece
            budget -= piece
            if row.filled == row.prompt:
                seconds += self.prices.first_token
                fresh.append(row)
        taken, exits = (
            self._decoded(ready, 1) if ready else (self.prices.overhead[:1], np.zeros((0, 1), dtype=np.int64))
        )
        self._keep(ready, taken + seconds, exits)
        for row in fresh:
            self.times[row.place][0] = self.now
            row.done = 1

    def _steps(self) -> None:
        """Steps until a row is done, or somebody comes who finds a row free."""
        most, arrives = min(BLOCK, *(row.output - row.done for row in self.rows)), math.inf
        if self._has_room() and self.next < len(self.demand):
            arrives = float(self.demand.arrival[self.next])
            if most > 8:  # what comes after is thrown away
                step = float(self._decoded(self.rows, 1)[0][0])
                most = min(most, max(1, math.ceil(2.0 * (arrives - self.now) / step)))
        seconds, exits = self._decoded(self.rows, most)
        count = min(most, int(np.searchsorted(self.now + np.cumsum(seconds), arrives)) + 1)
        self._keep(self.rows, seconds[:count], exits[:, :count])

    def _decoded(self, rows: Sequence[_BusyRow], steps: int) -> tuple[Seconds, Integers]:
        own = np.array([row.exits[row.done : row.done + steps] for row in rows])
        asks = self.asks[:, [row.rung for row in rows]]
        contexts = [row.prompt + row.done - 1 for row in rows]
        read = max(contexts) if self.limits.padded else sum(contexts) / len(contexts)
        return run_steps(self.prices, self.limits.rule, own, asks, read + np.arange(float(steps)))

    def _keep(self, rows: Sequence[_BusyRow], seconds: Seconds, exits: Integers) -> None:
        """Steps have passed: float64 [steps] seconds, and where rows left, int64 [rows, steps]."""
        count, ends = len(seconds), self.now + np.cumsum(seconds)
        for row, own, place in zip(rows, exits, np.searchsorted(self.exits, exits), strict=True):
            self.times[row.place][row.done : row.done + count] = ends
            self.layers[row.place] += int(own.sum())
            kept = row.kept[self.kept_at[row.rung][place], row.done + np.arange(count)]
            self.lost[row.place] += count - int(kept.sum())
            row.done += count
        self.row_steps += count * len(rows)
        self.steps += count
        self.now, self.busy = float(ends[-1]), self.busy + float(seconds.sum())
