"""One threshold per exit: coordinate ascent from the best single threshold, at many prices of a loss."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.policies.policy_cost import check_price, gives_output
from offramp.tuning.exit_sets import Exits
from offramp.tuning.families import ThresholdFamily

# What a unit of mean loss may cost, in plain tokens per allowed risk: from bold to cautious.
PRICES_OF_LOSS = tuple(float(price) for price in np.geomspace(0.03, 30.0, 8))
# Passes over the exits; the second rarely changes much.
PASSES = 2

NEVER = -1
"""The threshold of an exit where nothing leaves, so that it need not be checked."""


@dataclass(frozen=True)
class Rates:
    """Prices of one token at batch 1 at every checked exit: float64 [exits].

    leave: layers and head of leaving there; check: the probe. last: of exit L.
    """

    leave: NDArray[np.float64]
    check: NDArray[np.float64]
    last: float


def rates_of(family: ThresholdFamily, exits: Exits) -> Rates:
    """The prices of a signal's exits, shared out evenly over the batch."""
    costs = family.pool.pricing.costs
    facts = (family.signal.fact,)
    places = np.array(exits) - 1
    heads = np.zeros(len(exits)) if gives_output(facts) else costs.heads[places]
    leave = costs.overhead + costs.until_exit[places] + heads
    price = check_price(costs, facts)
    check = np.full(len(exits), price)
    return Rates(leave / costs.batch, check / costs.batch, costs.plain / costs.batch)


def per_exit_thresholds(
    family: ThresholdFamily, exits: Exits, risk: float, prices: Iterable[float] = PRICES_OF_LOSS
) -> list[tuple[Exits, tuple[float, ...]]]:
    """Thresholds per exit that coordinate ascent finds for a signal on a set of exits: (exits, thresholds).

    Minimised is the mean cost of a token plus a price times its loss, from deep to shallow exits, all others
    held fixed, over all thresholds of the grid at once; the start is the best single threshold at that price.
    Exits where nothing should leave are dropped. The signal must not open.
    """
    pool = family.pool
    places = np.array([pool.below.index(exit) for exit in exits])
    ranks = family.grid.ranks[:, places].astype(np.int32)
    losses = pool.losses[:, [*pool.evidence.columns(exits), -1]]
    rates = rates_of(family, exits)
    single = family.curve_of(exits)
    costs = family.costs_of(exits, single.shares)
    found = []
    for price in prices:
        of_loss = price * pool.pricing.plain / risk
        start = int(np.argmin(costs + of_loss * single.risk))
        thresholds = np.full(len(exits), start, dtype=np.int64)
        for _ in range(PASSES):
            _improve(thresholds, ranks, losses, rates, pool.weights, of_loss, family.grid.points)
        kept = np.flatnonzero(thresholds != NEVER)
        if kept.size:
            chosen = tuple(exits[place] for place in kept)
            found.append((chosen, tuple(family.value_at(int(thresholds[place])) for place in kept)))
    return list(dict.fromkeys(found))


def _improve(
    thresholds: NDArray[np.int64],
    ranks: NDArray[np.int32],
    losses: NDArray[np.float32],
    rates: Rates,
    weights: NDArray[np.float64],
    of_loss: float,
    points: int,
) -> None:
    """One pass over the exits from deep to shallow; changes `thresholds`.

    ranks: [tokens, exits]. losses: [tokens, exits + 1], those at exit L last. weights: float64 [tokens].
    """
    tokens = len(ranks)
    fires = ranks <= thresholds
    arrives = np.ones(fires.shape, dtype=np.bool_)
    np.logical_not(np.logical_or.accumulate(fires[:, :-1], axis=1), out=arrives[:, 1:])
    # What a token that passes the exit costs and loses from there on.
    cost, lost = np.full(tokens, rates.last), losses[:, -1].astype(np.float64)
    for place in range(len(thresholds) - 1, -1, -1):
        rows = np.flatnonzero(arrives[:, place])
        leaving = (rates.leave[place] - cost[rows]) / tokens
        leaving += of_loss * weights[rows] * (losses[rows, place] - lost[rows])
        change = np.cumsum(np.bincount(ranks[rows, place], weights=leaving, minlength=points + 1)[:points])
        best = int(np.argmin(change))
        checked = rates.check[place] * len(rows) / tokens
        thresholds[place] = best if change[best] + checked < 0.0 else NEVER
        if thresholds[place] == NEVER:
            continue
        goes = ranks[:, place] <= thresholds[place]
        cost = np.where(goes, rates.leave[place], cost) + rates.check[place]
        lost = np.where(goes, losses[:, place], lost)
