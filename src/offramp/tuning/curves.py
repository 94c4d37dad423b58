"""One signal with one threshold on one set of exits: risk and exits taken at a few thousand thresholds.

As the threshold loosens, a token moves from exit to exit at the records of its signal, read from shallow to
deep (see `offramp.policies.frontier`). Here values are first put on a grid of thresholds, so that nothing is
sorted and any loss can be summed; with no more distinct values than grid points, the grid is exact.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from offramp.policies.signals import ROUNDING, Signal
from offramp.scoring.documents import fact_of, require_numbers
from offramp.tracing.trace import Trace

POINTS = 4096
"""Thresholds on the grid."""

# Values that the grid is taken from, evenly spread over the tokens.
SAMPLE = 1 << 19
# Rows handled at once, so that the pieces stay in the processor's cache.
ROWS = 8192

Ranks = NDArray[np.uint16]


@dataclass(frozen=True)
class ThresholdGrid:
    """Thresholds of one signal from cautious to bold, and where each value stands among them.

    values: float64 [points], in the signal's own unit. bolder: float64 [points], the next value that was
    recorded beyond each, NaN after the last: all thresholds in between decide alike. ranks: uint16 [tokens,
    exits], the first threshold at which the token would leave there; `points` if it never would.
    """

    values: NDArray[np.float64]
    bolder: NDArray[np.float64]
    ranks: Ranks

    @property
    def points(self) -> int:
        """How many thresholds there are."""
        return len(self.values)


@dataclass(frozen=True)
class Curve:
    """What the thresholds of a grid do on one set of exits, from cautious to bold.

    risk: float64 [points], mean loss over documents. shares: float64 [points, exits + 1], share of the tokens
    that leave at each checked exit, exit L last.
    """

    risk: NDArray[np.float64]
    shares: NDArray[np.float64]

    @cached_property
    def by_risk(self) -> NDArray[np.int64]:
        """The thresholds from the smallest risk to the largest, equal ones from cautious to bold."""
        return np.argsort(self.risk, kind="stable")

    def cheapest(self, costs: NDArray[np.float64], targets: NDArray[np.float64]) -> list[int]:
        """The cheapest threshold whose risk is within each target, each named once: places.

        costs: float64 [points]. targets: float64, ascending. Of equally cheap ones that of the least risk.
        """
        ordered = costs[self.by_risk]
        lowest = np.minimum.accumulate(ordered)
        falls = np.flatnonzero(np.append(True, ordered[1:] < lowest[:-1]))
        within = np.searchsorted(self.risk[self.by_risk], targets, side="right")
        last = np.searchsorted(falls, within[within > 0], side="left") - 1
        return [int(place) for place in self.by_risk[falls[np.unique(last)]]]


def make_grid(
    trace: Trace, signal: Signal, columns: NDArray[np.int64], points: int = POINTS
) -> ThresholdGrid:
    """The thresholds worth trying for a signal at some columns of the trace.

    Raises InputError for a value that is not a number.
    """
    fact = fact_of(trace, signal.fact)
    sign = np.float32(1.0 if signal.exit_when == "at least" else -1.0)
    step = max(1, fact.shape[0] * len(columns) // SAMPLE)
    sampled = np.unique(fact[::step, columns].astype(np.float32)) * sign
    # A threshold outside the signal's range tells no tokens apart.
    inside = (signal.low - ROUNDING <= sign * sampled) & (sign * sampled <= signal.high + ROUNDING)
    sampled = np.sort(sampled[np.isfinite(sampled) & inside])
    following = np.append(np.float32(np.nan), sampled[:-1])
    if len(sampled) > points:
        kept = np.unique(np.linspace(0, len(sampled) - 1, points).round().astype(np.int64))
        sampled, following = sampled[kept], following[kept]
    ranks = np.empty((fact.shape[0], len(columns)), dtype=np.uint16)
    for start in range(0, len(fact), ROWS):
        values = sign * fact[start : start + ROWS, columns].astype(np.float32)
        if np.isnan(values).any():
            for column in columns:
                at = f"at exit {int(trace.exits[column])}"
                require_numbers(trace, signal.fact, np.isnan(fact[:, column]), at)
        reached = np.searchsorted(sampled, values, side="right")
        ranks[start : start + ROWS] = len(sampled) - reached
    thresholds = 0.0 + (sign * sampled[::-1]).astype(np.float64)
    return ThresholdGrid(thresholds, (sign * following[::-1]).astype(np.float64), ranks)


def curve(
    grid: ThresholdGrid,
    places: Sequence[int],
    losses: NDArray[np.float32],
    columns: NDArray[np.int64],
    weights: NDArray[np.float64],
) -> Curve:
    """Risk and exits at every threshold of the grid.

    places: columns of `grid.ranks` where a token may leave, ascending. losses: float32 [tokens, exits of the
    trace]; columns: int64 [places], where in them those exits stand. weights: float64 [tokens].
    """
    exits, points = len(places), grid.points
    slots = exits + 1
    risk = np.zeros(points + 1)
    moves = np.zeros((points + 1) * slots, dtype=np.int64)
    chosen = np.asarray(places, dtype=np.int64)
    places_of = np.append(columns, losses.shape[1] - 1)  # slot `exits` is exit L
    for start in range(0, len(losses), ROWS):
        ranks = grid.ranks[start : start + ROWS, chosen]
        target, source, rows, rank = _records(ranks)
        lost = losses[start : start + ROWS]
        to, away = lost[rows, places_of[target]], lost[rows, places_of[source]]
        change = (to - away) * weights[start : start + ROWS][rows]
        risk += np.bincount(rank, weights=change, minlength=points + 1)
        place = rank.astype(np.int64) * slots
        moves += np.bincount(place + target, minlength=len(moves))
        moves -= np.bincount(place + source, minlength=len(moves))
    leaving = np.cumsum(moves.reshape(points + 1, slots)[:points], axis=0).astype(np.float64)
    leaving[:, -1] += len(losses)
    # Rounding must not make a risk negative.
    mean = np.maximum(float(losses[:, -1] @ weights) + np.cumsum(risk[:points]), 0.0)
    return Curve(mean, leaving / max(len(losses), 1))


def _records(
    ranks: Ranks,
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64], Ranks]:
    """The moves of some tokens: where to, where from (the number of exits: exit L), the row, the rank.

    A token comes to exit i from the next deeper exit that fires earlier, or from exit L.
    """
    count = ranks.shape[1]
    record = np.ones(ranks.shape, dtype=np.bool_)
    if count > 1:
        lowest = np.minimum.accumulate(ranks, axis=1)
        np.less(ranks[:, 1:], lowest[:, :-1], out=record[:, 1:])
    place = np.flatnonzero(record)
    rows, target = np.divmod(place, count)
    # Each token's records follow one another and begin at exit 0.
    source = np.roll(target, -1)
    source[source == 0] = count
    return target, source, rows, ranks.ravel()[place]


def shortest_threshold(value: float, bolder: float | None, *, upwards: bool) -> float:
    """The number of fewest decimals that decides as `value` does, for people to read.

    Every number from `value` up to, not including, the next bolder threshold makes the same decisions.
    upwards: bolder thresholds are larger (the token leaves "at most" at the threshold).
    """
    for decimals in range(1, 17):
        scale = 10.0**decimals
        candidate = (math.ceil(value * scale) if upwards else math.floor(value * scale)) / scale
        beyond = bolder is not None and (candidate >= bolder if upwards else candidate <= bolder)
        short = candidate < value if upwards else candidate > value
        if not beyond and not short:
            return candidate
    return value
