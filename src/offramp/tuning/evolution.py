"""A policy found by evolution: at every exit a signal of its own with a threshold of its own, or no check.

Differential evolution (Storn and Price 1997, doi 10.1023/A:1008202821328) as scipy has it. The families of
`offramp.tuning.search` have one signal for all exits; here a cheap one may guard the early exits and a dear
one the last. It starts from the fastest threshold rule there is, and is never slower than that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.policies.parameter_types import Exits
from offramp.policies.policy import ExitPolicy
from offramp.policies.prices import check_price, gives_output
from offramp.policies.rules.combined import Votes
from offramp.policies.rules.fixed import Never
from offramp.policies.rules.threshold import Threshold, Thresholds
from offramp.tuning.pool import ROUNDING, Pool, ScoredPolicy
from offramp.tuning.threshold_family import ThresholdFamily

FAMILY = "found by evolution"

MOST_EXITS, MOST_SIGNALS = 6, 4
"""That a policy may check: those of the fastest threshold rules."""

GENERATIONS, POPULATION = 60, 8
"""POPULATION: members for every gene."""

UNCHECKED = -0.3
"""From here to 0 the gene of a threshold leaves its exit out; from 0 to 1 it is a place on the grid."""

Genes = NDArray[np.float64]


Chosen = Mapping[int, tuple[int, int]]
"""What genes mean: a signal's place among the signals and a point of its grid, by exit."""


@dataclass(frozen=True)
class Searched:
    """What is searched: exits and signals, the fastest first, and the start."""

    pool: Pool
    exits: Exits
    families: tuple[ThresholdFamily, ...]
    start: Threshold

    @classmethod
    def of(cls, pool: Pool, families: Mapping[str, ThresholdFamily], risk: float) -> Searched | None:
        """From the threshold rules in the pool that keep the risk; None if there are none."""
        rules = [
            scored.policy
            for scored in sorted(pool.found, key=lambda one: (one.cost, one.risk))
            if scored.risk <= risk + ROUNDING and isinstance(scored.policy, Threshold)
        ]
        rules = [one for one in rules if not families[one.signal].signal.opens]
        if not rules:
            return None
        signals = list(dict.fromkeys(rule.signal for rule in rules))[:MOST_SIGNALS]
        layers = pool.trace.layers
        start = next((one for one in rules if len(one.checked_exits(layers)) <= MOST_EXITS), None)
        if start is None:
            return None
        exits = dict.fromkeys(start.checked_exits(layers))
        exits |= dict.fromkeys(exit for rule in rules for exit in rule.checked_exits(layers))
        checked = tuple(sorted(list(exits)[:MOST_EXITS]))
        return cls(pool, checked, tuple(families[name] for name in signals), start)

    def rule(self, genes: Genes) -> Chosen:
        """genes: [exits, 2], of the signal in [0, signals) and of the threshold."""
        chosen = {}
        for exit, (signal, place) in zip(self.exits, genes.reshape(-1, 2), strict=True):
            if place >= 0.0:
                which = min(int(signal), len(self.families) - 1)
                points = self.families[which].grid.points
                chosen[exit] = which, min(int(place * points), points - 1)
        return chosen

    @property
    def starting_genes(self) -> Genes:
        """Of the rule to start from."""
        which = [family.signal.name for family in self.families].index(self.start.signal)
        grid = self.families[which].grid
        # From cautious to bold: the boldest point whose tokens leave under the rule too.
        fires = self.families[which].signal.fires(grid.values, self.start.value)
        place = (max(int(fires.sum()) - 1, 0) + 0.5) / grid.points
        checked = self.start.checked_exits(self.pool.trace.layers)
        return np.array(
            [[which + 0.5, place if exit in checked else UNCHECKED] for exit in self.exits]
        ).ravel()

    def policy(self, rule: Chosen) -> ExitPolicy:
        """The rule as a policy of the grammar."""
        by_signal: dict[int, dict[int, float]] = {}
        for exit, (which, point) in rule.items():
            by_signal.setdefault(which, {})[exit] = self.families[which].value_at(point)
        parts = tuple(
            Thresholds(self.families[which].signal.name, tuple(values.values()), tuple(values))
            for which, values in sorted(by_signal.items())
        )
        return Never() if not parts else parts[0] if len(parts) == 1 else Votes("any", parts)

    def outcome(self, rule: Chosen) -> tuple[float, float]:
        """Mean cost of a token and mean loss over documents: what `Pool.score` says of the policy."""
        evidence, costs = self.pool.evidence, self.pool.pricing.costs
        rows = np.arange(self.pool.trace.token_count)
        total, risk = 0.0, 0.0
        for exit, (which, point) in rule.items():
            family = self.families[which]
            facts = (family.signal.fact,)
            total += check_price(costs, facts) * len(rows)
            leaves = family.grid.ranks[rows, evidence.below.index(exit)] <= point
            head = 0.0 if gives_output(facts, short_list=costs.short_list) else costs.heads[exit - 1]
            total += float(leaves.sum()) * (costs.overhead + costs.until_exit[exit - 1] + head)
            column = int(evidence.columns((exit,))[0])
            risk += float(evidence.losses[rows[leaves], column] @ evidence.weights[rows[leaves]])
            rows = rows[~leaves]
        total += len(rows) * costs.plain
        risk += float(evidence.losses[rows, -1] @ evidence.weights[rows])
        return total / self.pool.trace.token_count, risk


def evolve(
    pool: Pool,
    families: Mapping[str, ThresholdFamily],
    risk: float,
    seed: int,
    *,
    generations: int = GENERATIONS,
) -> ScoredPolicy | None:
    """The fastest rule that evolution finds at this risk; None where there is nothing to start from.

    Batches are priced by what the exits alone say, so that only batch 1 is searched.
    """
    from scipy.optimize import differential_evolution

    searched = Searched.of(pool, families, risk) if pool.pricing.batch == 1 else None
    if searched is None:
        return None

    def worth(genes: Genes) -> float:
        """Cost in tokens of the full model; beyond the risk more than 1, the more the farther."""
        cost, lost = searched.outcome(searched.rule(genes))
        return cost / pool.pricing.plain if lost <= risk + ROUNDING else 1.0 + lost / risk

    bounds: Sequence[tuple[float, float]] = [(0.0, len(searched.families)), (UNCHECKED, 1.0)] * len(
        searched.exits
    )
    optimum = differential_evolution(
        worth,
        bounds,
        seed=seed,
        maxiter=generations,
        popsize=POPULATION,
        x0=searched.starting_genes,
        polish=False,
        tol=0.0,
    )
    return pool.score(FAMILY, searched.policy(searched.rule(optimum.x)))
