"""A server with continuous batching, step by step: rows join and leave at every step, prompts in pieces.

Steps between two events (a request joins, one is done) are worked out at once: their rows stay the same.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.scoring.documents import DocumentRows
from offramp.serving.contenders import Integers, LoadContender
from offramp.serving.prices import Places, Seconds, StepPrices
from offramp.serving.request import Arrivals, RequestLengths, Rule, ServerLimits

BLOCK = 256
"""Steps that are worked out at once, at most."""


@dataclass(frozen=True)
class Demand:
    """Requests in the order in which they arrive.

    arrival: float64 [requests], seconds, rising. prompt, output: int64 [requests], tokens. text: float64
    [requests, 2] in [0, 1), of which document at hand the answer is, and where in it the answer begins.
    """

    arrival: Seconds
    prompt: Integers
    output: Integers
    text: Seconds

    def __len__(self) -> int:
        return len(self.arrival)


def demand_of(arrivals: Arrivals, lengths: RequestLengths, rate: float, count: int, seed: int) -> Demand:
    """What arrives at `rate` requests per second; of one seed all but the times is the same at every rate.

    Of a file its gaps and lengths from a request on, stretched to the rate, over and over.
    """
    draw = np.random.default_rng(seed)
    text, spread = draw.random((count, 2)), np.exp(lengths.sigma * draw.standard_normal((2, count)))
    medians = np.array([[lengths.prompt], [lengths.output]])
    prompt, output = np.clip(np.rint(medians * spread), 1, 8 * medians).astype(np.int64)
    if not arrivals.seconds:
        shape = 1.0 / arrivals.cv**2
        return Demand(np.cumsum(draw.gamma(shape, 1.0 / (rate * shape), count)), prompt, output, text)
    gaps = np.diff(arrivals.seconds)
    start = int(draw.integers(len(gaps)))
    own = np.resize(np.roll(gaps, -start), count) / (gaps.mean() * rate)
    if arrivals.lengths:
        given = np.array(arrivals.lengths[1:], dtype=np.int64)
        prompt, output = (np.resize(np.roll(column, -start), count) for column in given.T)
    return Demand(np.cumsum(own), prompt, output, text)


def answers_of(rows: DocumentRows, demand: Demand) -> list[Integers]:
    """Of every request the replayed tokens of its answer, a stretch of one document: int64 [output] each.

    A stretch that reaches the document's end goes on at its start.
    """
    places = (demand.text[:, 0] * len(rows.starts)).astype(np.int64)
    lengths = rows.lengths[places]
    begin = (demand.text[:, 1] * lengths).astype(np.int64)
    stretches = zip(rows.starts[places], begin, lengths, demand.output, strict=True)
    return [start + (first + np.arange(int(count))) % length for start, first, length, count in stretches]


@dataclass(eq=False)
class ServedDemand:
    """A demand and a server that serves it: what has become of both so far.

    times: of each request when each of its tokens was there, [output]. rung, layers, lost: int64 [requests],
    which rung it had, layers executed for its tokens after the first, and how many of those are not the full
    model's (None where nobody judges). busy: seconds of all steps. row_steps: rows that decoded, over all
    steps. now: seconds of the server's clock. come: requests that have arrived.
    """

    demand: Demand
    times: Sequence[Any]
    rung: Integers
    layers: Integers
    lost: Integers | None
    busy: float = 0.0
    steps: int = 0
    row_steps: int = 0
    now: float = 0.0
    come: int = 0

    def arriving(self) -> Iterator[int]:
        """Requests that have arrived by now, each once."""
        while self.come < len(self.demand) and self.demand.arrival[self.come] <= self.now:
            self.come += 1
            yield self.come - 1


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
        asked &= prices.asks(rule, place, asked.sum(0))
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
    server = _Server(demand, answers, contender, prices, limits)
    server.run()
    return server


class _Server(ServedDemand):
    """rows: requests that are being served. filled, done: int64 [requests], tokens of the prompt that have
    run, and of the answer that are there.
    """

    lost: Integers

    def __init__(
        self,
        demand: Demand,
        answers: Sequence[Integers],
        contender: LoadContender,
        prices: StepPrices,
        limits: ServerLimits,
    ) -> None:
        times = [np.empty(int(output)) for output in demand.output]
        super().__init__(demand, times, *np.zeros((3, len(demand)), dtype=np.int64))
        self.answers, self.contender, self.prices, self.limits = answers, contender, prices, limits
        self.waiting: deque[int] = deque()
        self.rows: list[int] = []
        self.filled, self.done = np.zeros((2, len(demand)), dtype=np.int64)
        self.exits = np.array([*contender.stops, contender.layers])
        having = [[stop in rung.stops for stop in contender.stops] for rung in contender.rungs]
        self.asks = np.array(having, dtype=np.bool_).T
        # Of each rung where the exits of all lie among its own, to know what is kept there.
        self.kept_at = [np.searchsorted([*rung.stops, rung.layers], self.exits) for rung in contender.rungs]

    def run(self) -> None:
        demand = self.demand
        while self.come < len(demand) or self.waiting or self.rows:
            self.waiting.extend(self.arriving())
            if not self.waiting and not self.rows:
                self.now = float(demand.arrival[self.come])
            elif (self.waiting and self._has_room()) or not self._is_filled(self.rows).all():
                self._step_with_prompts()
            else:
                self._steps()
            self.rows = [row for row in self.rows if self.done[row] < demand.output[row]]

    def _has_room(self) -> bool:
        return len(self.rows) < self.limits.rows

    def _is_filled(self, rows: int | list[int]) -> NDArray[np.bool_]:
        return np.asarray(self.filled[rows] == self.demand.prompt[rows])

    def _admit(self) -> int:
        rung = self.contender.rung_at(len(self.waiting) + len(self.rows))
        self.rows.append(self.waiting.popleft())
        self.rung[self.rows[-1]] = rung
        return self.rows[-1]

    def _step_with_prompts(self) -> None:
        """One step: a token of each row that decodes, then pieces of prompts, those begun first."""
        ready = [row for row in self.rows if self._is_filled(row)]
        filling = deque(row for row in self.rows if row not in ready)
        budget, seconds, fresh = self.limits.budget - len(ready), 0.0, []
        while budget > 0 and (filling or (self.waiting and self._has_room())):
            row = filling.popleft() if filling else self._admit()
            past = int(self.filled[row])
            piece = min(budget, int(self.demand.prompt[row]) - past)
            seconds += self.prices.prompt(piece, past)
            self.filled[row] += piece
            budget -= piece
            if self._is_filled(row):
                seconds += self.prices.first_token
                fresh.append(row)
        taken, exits = (
            self._decoded(ready, 1) if ready else (self.prices.overhead[:1], np.zeros((0, 1), dtype=np.int64))
        )
        self._keep(ready, taken + seconds, exits)
        for row in fresh:
            self.times[row][0] = self.now
            self.done[row] = 1

    def _steps(self) -> None:
        """Steps until a row is done, or somebody comes who finds a row free."""
        most = min(BLOCK, int((self.demand.output - self.done)[self.rows].min()))
        arrives = math.inf
        if self._has_room() and self.come < len(self.demand):
            arrives = float(self.demand.arrival[self.come])
            if most > 8:  # what comes after is thrown away
                step = float(self._decoded(self.rows, 1)[0][0])
                most = min(most, max(1, math.ceil(2.0 * (arrives - self.now) / step)))
        seconds, exits = self._decoded(self.rows, most)
        count = min(most, int(np.searchsorted(self.now + np.cumsum(seconds), arrives)) + 1)
        self._keep(self.rows, seconds[:count], exits[:, :count])

    def _tokens(self, row: int, count: int) -> Integers:
        """The next ones of a row's answer."""
        return self.answers[row][self.done[row] : self.done[row] + count]

    def _decoded(self, rows: list[int], steps: int) -> tuple[Seconds, Integers]:
        rungs = self.rung[rows]
        pairs = zip(rows, rungs, strict=True)
        own = np.array([self.contender.rungs[rung].exits[self._tokens(row, steps)] for row, rung in pairs])
        contexts = self.demand.prompt[rows] + self.done[rows] - 1
        read = contexts.max() if self.limits.padded else contexts.mean()
        context = read + np.arange(float(steps))
        return run_steps(self.prices, self.limits.rule, own, self.asks[:, rungs], context)

    def _keep(self, rows: list[int], seconds: Seconds, exits: Integers) -> None:
        """Steps have passed: float64 [steps] seconds, and where rows left, int64 [rows, steps]."""
        count, ends = len(seconds), self.now + np.cumsum(seconds)
        for row, own, place in zip(rows, exits, np.searchsorted(self.exits, exits), strict=True):
            rung, done = self.rung[row], self.done[row]
            kept = self.contender.rungs[rung].kept[self.kept_at[rung][place], self._tokens(row, count)]
            self.times[row][done : done + count] = ends
            self.layers[row] += own.sum()
            self.lost[row] += count - kept.sum()
        self.done[rows] += count
        self.row_steps += count * len(rows)
        self.steps += count
        self.now, self.busy = float(ends[-1]), self.busy + float(seconds.sum())
