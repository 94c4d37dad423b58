"""What a step of a server takes: its rows and their contexts, prompts, checks, K and V of rows that left."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from offramp.costs import counting
from offramp.costs.machine import Machine
from offramp.policies.cost_breakdown import PriceAt
from offramp.policies.prices import check_price, fitted_sizes, gives_output, prices_by_rows
from offramp.policies.rules.short_list import costs_for
from offramp.serving.contenders import Integers, LoadContender
from offramp.serving.request import Rule
from offramp.tracing.trace import Trace

Seconds = NDArray[np.float64]

CONTEXTS = (0, 32, 64, *(2**power for power in range(7, 18)))
"""At which steps are priced; between two of them a price lies on a straight line."""


@dataclass(frozen=True)
class Places:
    """Where some contexts lie among those that are priced: int64 and float64 [steps]."""

    below: Integers
    share: Seconds

    @classmethod
    def of_contexts(cls, contexts: Seconds, wanted: Seconds) -> Places:
        """Of float64 [steps]; beyond the last price on the line through the last two."""
        below = np.clip(np.searchsorted(contexts, wanted, "right") - 1, 0, len(contexts) - 2)
        return cls(below, (wanted - contexts[below]) / (contexts[below + 1] - contexts[below]))

    def of(self, table: Seconds, rows: Integers) -> Seconds:
        """What a table [rows + 1, contexts] says of each step's rows: float64 [steps]."""
        low, high = table[rows, self.below], table[rows, self.below + 1]
        return np.asarray(low + (high - low) * self.share)


@dataclass(frozen=True)
class StepPrices:
    """The prices of one contender's steps, in seconds, by how many rows a part has, 0 rows to all.

    stops: exits below `depth`, L. contexts: float64 [contexts], rising. layers, repair: float64 [segments,
    rows + 1, contexts], of the layers between two stops for rows that go on, and K and V there of rows that
    have left. probe, exit_head: float64 [stops, rows + 1], asking so many rows, and the output of so many
    that leave with what rebatching takes. answered: bool [stops], whether asking gives the output too. final,
    overhead: float64 [rows + 1]. prompt: the layers of a piece of so many tokens after so many; first_token:
    the output behind a whole prompt. rates: share of the rows that are asked at each stop that leave there.
    """

    stops: tuple[int, ...]
    depth: int
    contexts: Seconds
    layers: Seconds
    repair: Seconds
    probe: Seconds
    exit_head: Seconds
    answered: NDArray[np.bool_]
    final: Seconds
    overhead: Seconds
    prompt: Callable[[int, int], float]
    first_token: float
    rates: tuple[float, ...]

    @cached_property
    def _after(self) -> tuple[Seconds, Seconds]:
        """Layers and K and V of all layers after each stop: float64 [stops, rows + 1, contexts]."""
        layers, repair = (np.cumsum(of[::-1], axis=0)[::-1][1:] for of in (self.layers, self.repair))
        return layers, repair

    def saved(self, place: int, rows: Integers, leaving: Integers, gone: Integers, at: Places) -> Seconds:
        """What a step saves if so many of its rows leave at a stop, less what that takes: float64 [steps].

        gone: rows that have left before.
        """
        layers, repair = (of[place] for of in self._after)
        rest = rows - leaving
        saved = at.of(layers, rows) - at.of(layers, rest) + self.final[rows] - self.final[rest]
        more = at.of(repair, gone + leaving) - at.of(repair, gone)
        head = 0.0 if self.answered[place] else self.exit_head[place, leaving]
        return np.asarray(saved - more - head)

    def asks(self, rule: Rule, place: int, rows: Integers) -> NDArray[np.bool_]:
        """Whether so many rows that have not decided are asked at a stop: bool, as rows."""
        return np.asarray(self.worth_asking[place][rows] if rule == "gain" else rows > 0)

    def leave(
        self, rule: Rule, place: int, rows: Integers, leaving: Integers, gone: Integers, at: Places
    ) -> NDArray[np.bool_]:
        """In which steps rows that were let go leave at a stop: bool [steps]."""
        if rule == "lockstep":
            return np.asarray(leaving == rows)
        return np.asarray(self.saved(place, rows, leaving, gone, at) > 0.0)

    @cached_property
    def worth_asking(self) -> NDArray[np.bool_]:
        """Whether asking pays where so many rows have not decided: bool [stops, rows + 1].

        What is saved on average, if each of them leaves with the stop's own share and they do only where that
        saves time, exceeds the check.
        """
        found = np.zeros((len(self.stops), len(self.final)), dtype=np.bool_)
        for place, rate in enumerate(self.rates):
            for rows in range(1, len(self.final)):
                leaving = np.arange(rows + 1)
                at = Places.of_contexts(self.contexts, np.full(rows + 1, self.contexts[-1] / 2.0))
                saved = self.saved(place, np.full(rows + 1, rows), leaving, 0 * leaving, at)
                expected = float(binom.pmf(leaving, rows, rate) @ np.maximum(saved, 0.0))
                found[place, rows] = expected > self.probe[place, rows]
        return found

    def scaled(self, factor: float) -> StepPrices:
        """The same where everything takes so many times as long."""
        names = ("layers", "repair", "probe", "exit_head", "final", "overhead", "first_token")
        more = {name: getattr(self, name) * factor for name in names}
        return replace(self, **more, prompt=lambda tokens, past: factor * self.prompt(tokens, past))


def leaving_rates(contender: LoadContender) -> tuple[float, ...]:
    """Share of the tokens that leave at each stop of those that come so far, all rungs together."""
    exits = np.concatenate([rung.exits for rung in contender.rungs])
    return tuple(float((exits == stop).sum() / max(1, (exits >= stop).sum())) for stop in contender.stops)


@dataclass(frozen=True)
class MachinePrices:
    """A machine's prices of one model's steps, each asked for once."""

    machine: Machine
    trace: Trace

    @cached_property
    def at(self) -> Callable[[int], PriceAt]:
        """Prices of a step at a context, by its rows. Raises InputError for what cannot be priced."""
        shape, sizes = self.trace.shape, fitted_sizes(self.trace)
        return cache(lambda context: prices_by_rows(self.machine, shape, float(context), sizes))

    @cached_property
    def prompt(self) -> Callable[[int, int], float]:
        """Seconds of the layers for a piece of a prompt, by its tokens and how many came before.

        Derived: its products as those of so many rows without a context; its attention by FLOPs at the pace
        of the products.
        """

        def seconds(tokens: int, past: int) -> float:
            positions = (0.0, past + (tokens - 1) / 2)
            plain, whole = (counting.layer_flops(self.trace.shape, at, tokens) for at in positions)
            return float((self.at(0)(tokens).layers * whole / plain).sum())

        return cache(seconds)

    def step_prices(self, contender: LoadContender, rows: int, longest: int) -> StepPrices:
        """What a contender's steps of up to so many rows take, over contexts of up to `longest` positions.

        Outputs are read as the boldest rung's are. Raises InputError for what cannot be priced.
        """
        contexts = CONTEXTS[: max(2, 1 + sum(context < longest for context in CONTEXTS))]
        stops, policy, facts = contender.stops, contender.rungs[-1].policy, contender.facts
        edges = [0, *stops]
        layers, repair = np.zeros((2, len(edges), rows + 1, len(contexts)))
        probe, exit_head = np.zeros((2, len(stops), rows + 1))
        final, overhead = np.zeros((2, rows + 1))
        for many in range(1, rows + 1):
            for place, context in enumerate(contexts):
                costs = self.at(context)(many)
                layers[:, many, place] = np.add.reduceat(costs.layers, edges)
                repair[:, many, place] = np.add.reduceat(costs.key_value, edges)
            costs = costs_for(policy, self.at(0)(many))
            final[many], overhead[many], exit_head[:, many] = costs.head, costs.overhead, costs.exit_head
            probe[:, many] = [check_price(costs, facts[stop]) for stop in stops]
        overhead[0] = self.at(0)(1).overhead
        answered = [gives_output(facts[stop], short_list=policy.short_list) for stop in stops]
        return StepPrices(
            stops=stops,
            depth=contender.layers,
            contexts=np.array(contexts, dtype=np.float64),
            layers=layers,
            repair=repair,
            probe=probe,
            exit_head=exit_head,
            answered=np.array(answered, dtype=np.bool_),
            final=final,
            overhead=overhead,
            prompt=self.prompt,
            first_token=float(final[1]),
            rates=leaving_rates(contender),
        )
