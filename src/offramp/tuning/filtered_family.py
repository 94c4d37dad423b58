"""Thresholds of a dear signal behind a filter: which cheap check, and how many tokens it lets through."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from offramp.costs.probes import PROBES
from offramp.policies.parameters import Exits
from offramp.policies.policy import ExitPolicy
from offramp.policies.policy_cost import check_price
from offramp.policies.rules.filtered import Filtered
from offramp.tuning.curves import Curve, curve
from offramp.tuning.pool import ROUNDING, Pool
from offramp.tuning.threshold_family import ThresholdFamily

LET_THROUGH = tuple(float(share) for share in np.geomspace(0.05, 0.8, 9))
"""Shares of the tokens that a filter lets through, from few to most."""

DEAR_SIGNALS = 2
"""Signals that read logits which are tried behind filters: the fastest, were their checks free."""

SETS = 4
"""Sets of exits of each, chosen alike."""

FEW_EXITS = 8
"""With so many traced exits below L pairs are tried too."""

FILTER_EXITS = 3
"""The nearest exits before the first of a set, where a filter may stand."""


@dataclass(frozen=True)
class Filter:
    """A cheap check: the thresholds of its signal, its exit, the place of its threshold on their grid.

    through: bool [tokens], which it lets through.
    """

    family: ThresholdFamily
    exit: int
    point: int
    through: NDArray[np.bool_]

    @property
    def value(self) -> float:
        """Its threshold."""
        return self.family.value_at(self.point)


def add_filtered(
    pool: Pool, families: Mapping[str, ThresholdFamily], risk: float, targets: Sequence[float]
) -> None:
    """Add thresholds of dear signals behind filters: the fastest at each target risk, of each signal.

    Dear is what reads logits, and a filter what does not. In a batch a step asks about every token as soon as
    it asks about one, so that a filter spares nothing there, and none is tried.
    """
    if pool.pricing.batch > 1:
        return
    limits = np.array(targets) + ROUNDING
    best: dict[tuple[str, int], tuple[float, ExitPolicy]] = {}
    for family, exits in _dear(pool, families, risk):
        for filter_ in _filters(pool, families, exits[0]):
            found = _curve_behind(pool, family, exits, filter_.through)
            costs = _costs_behind(pool, family, exits, filter_, found)
            for point in found.cheapest(costs, limits):
                key = (family.signal.name, int(np.searchsorted(limits, found.risk[point])))
                if key not in best or costs[point] < best[key][0]:
                    inner = family.policy_at(exits, point)
                    behind = Filtered(filter_.family.signal.name, filter_.value, filter_.exit, inner)
                    best[key] = float(costs[point]), behind
    for (signal, _), (_, policy) in best.items():
        pool.add(pool.score(f"filtered {signal}", policy))


def _dear(
    pool: Pool, families: Mapping[str, ThresholdFamily], risk: float
) -> list[tuple[ThresholdFamily, Exits]]:
    """The signals that read logits and their sets of exits that would be fastest if checks were free."""
    below = pool.evidence.below
    sets: list[Exits] = [(exit,) for exit in below[1:]]
    if len(below) <= FEW_EXITS:
        sets += itertools.combinations(below[1:], 2)
    found: list[tuple[float, ThresholdFamily, Exits]] = []
    for family in families.values():
        if not PROBES[family.signal.probe].reads_logits or family.signal.opens or not family.grid.points:
            continue
        for exits in sets:
            free = _free_cost(pool, family, exits, risk)
            if free is not None:
                found.append((free, family, exits))
    found.sort(key=lambda one: (one[0], one[1].signal.name, one[2]))
    kept: dict[str, list[tuple[ThresholdFamily, Exits]]] = {}
    for _, family, exits in found:
        if family.signal.name in kept or len(kept) < DEAR_SIGNALS:
            kept.setdefault(family.signal.name, []).append((family, exits))
    return [tried for ones in kept.values() for tried in ones[:SETS]]


def _free_cost(pool: Pool, family: ThresholdFamily, exits: Exits, risk: float) -> float | None:
    """The cost of the fastest threshold within the risk, were its checks free; None without one."""
    found = pool.evidence.curve(family.signal, exits)
    within = np.flatnonzero(found.risk <= risk + ROUNDING)
    if not within.size:
        return None
    reached = 1.0 - np.cumsum(found.shares[:, :-1], axis=1)
    probed = np.hstack([np.ones((len(reached), 1)), reached[:, :-1]]).sum(axis=1)
    costs = family.costs_of(exits, found.shares) - probed * _check(pool, family)
    return float(costs[within].min())


def _check(pool: Pool, family: ThresholdFamily) -> float:
    return check_price(pool.pricing.costs, (family.signal.fact,))


def _filters(pool: Pool, families: Mapping[str, ThresholdFamily], first: int) -> Iterator[Filter]:
    """Cheap checks before an exit, from those that let few tokens through to those that let most."""
    evidence = pool.evidence
    exits = [exit for exit in evidence.below if exit < first][-FILTER_EXITS:]
    for family, exit in itertools.product(families.values(), exits):
        signal = family.signal
        if signal.opens or PROBES[signal.probe].reads_logits or not family.grid.points:
            continue
        ranks = family.grid.ranks[:, evidence.below.index(exit)]
        points = {min(int(np.quantile(ranks, share)), family.grid.points - 1) for share in LET_THROUGH}
        for point in sorted(points):
            yield Filter(family, exit, point, ranks <= point)


def _curve_behind(pool: Pool, family: ThresholdFamily, exits: Exits, through: NDArray[np.bool_]) -> Curve:
    """Risk and exits at every threshold, where only tokens that were let through may leave."""
    evidence, grid = pool.evidence, family.grid
    kept = np.where(through[:, None], grid.ranks, np.uint16(grid.points))
    places = [evidence.below.index(exit) for exit in exits]
    columns = evidence.columns(exits)
    return curve(replace(grid, ranks=kept), places, evidence.losses, columns, evidence.weights)


def _costs_behind(
    pool: Pool, family: ThresholdFamily, exits: Exits, filter_: Filter, found: Curve
) -> NDArray[np.float64]:
    """Mean cost of a token at every threshold: float64 [points].

    As if every token were asked, less what those are spared that were not let through, which all reach L.
    """
    spared = len(exits) * _check(pool, family) * float(np.mean(~filter_.through))
    return family.costs_of(exits, found.shares) - spared + _check(pool, filter_.family)
