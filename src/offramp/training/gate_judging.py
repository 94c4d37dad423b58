"""Exits by a signal at a floor: its fastest thresholds on some documents, and what they save on others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from offramp.costs.machine import Machine
from offramp.heads.parts import Classifier, Weights
from offramp.models.shape import ModelShape
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.fixed import Never
from offramp.policies.rules.threshold import Threshold
from offramp.policies.signals import SIGNALS
from offramp.tracing.fitting.classifiers import RAREST_CLASS, gains_surely
from offramp.tracing.trace import Trace
from offramp.training.gate import GATE, HALF, AtFloor, GateFit, GatePrices, GateRows
from offramp.tuning.floor import Floor
from offramp.tuning.pool import Pool, ScoredPolicy
from offramp.tuning.pricing import Pricing, pricing_of
from offramp.tuning.search import add_per_exit
from offramp.tuning.threshold_family import ThresholdFamily, add_thresholds

Probabilities = NDArray[np.float32]

CHOSEN_EVERY = 3
"""Of the documents that are not held out, one of so many is for choosing."""

BELOW_RISK = (0.5, 0.75, 1.0)
"""Search risks, in allowed ones, at which the fastest thresholds are kept."""


@dataclass(frozen=True)
class Judged:
    """A policy on documents that nothing was chosen on. saved: share of the full model's seconds."""

    policy: str
    agreement: float
    seconds_per_token: float
    saved: float


@dataclass(frozen=True)
class Judge:
    """What tokens that leave by one signal cost on a machine, as a tuner charges them.

    exits: ascending, below L. heads: as a trace's request describes them, empty without any. position: at
    which tokens are charged.
    """

    shape: ModelShape
    exits: tuple[int, ...]
    heads: Mapping[str, Any]
    position: float
    machine: Machine
    floor: Floor
    kv: str = "propagate"

    def trace(self, rows: GateRows, probabilities: Probabilities, signal: str) -> Trace:
        """The rows as a trace of one signal, [rows, exits]; its tokens are 0 where they agree."""
        last = np.ones((len(rows), 1), dtype=np.float32)
        wrong = (~rows.agrees.t().numpy()).astype(np.int32)
        _, document = np.unique(rows.document, return_inverse=True)
        return Trace.from_facts(
            {
                "top1": np.hstack([wrong, np.zeros_like(last, dtype=np.int32)]),
                signal: np.hstack([probabilities, last]),
            },
            document=document.astype(np.int32),
            shape=self.shape,
            exits=np.array([*self.exits, len(self.shape.layers)], dtype=np.int64),
            position=np.full(len(rows), round(self.position), dtype=np.int32),
            provenance={"request": {"heads": dict(self.heads)}},
        )

    def pool(self, rows: GateRows, probabilities: Probabilities, signal: str) -> Pool:
        """The rows, ready to be searched."""
        trace = self.trace(rows, probabilities, signal)
        return Pool(trace, self.floor, self.pricing(trace))

    def pricing(self, trace: Trace) -> Pricing:
        """Prices of a token of a trace."""
        return pricing_of(trace, self.machine, 1, self.kv)

    def prices(self, rows: GateRows) -> GatePrices:
        """Prices of leaving at each exit by its gate, and of staying."""
        nothing = np.zeros((len(rows), len(self.exits)), dtype=np.float32)
        return GatePrices.of(self.pricing(self.trace(rows, nothing, GATE)).costs, self.exits)

    def at_floor(self, rows: GateRows) -> Callable[[Probabilities], AtFloor | None]:
        """Finds the fastest threshold, one for all exits, that keeps the floor for gates on these rows."""

        def found(probabilities: Probabilities) -> AtFloor | None:
            pool = self.pool(rows, probabilities, GATE)
            best = ThresholdFamily(pool, SIGNALS[GATE], [self.floor.risk]).try_set(self.exits)
            if best is None:
                return None
            assert isinstance(best.policy, Threshold), "that is what the family makes"
            return AtFloor(best.policy.value, best.cost)

        return found

    def fastest(self, rows: GateRows, probabilities: Probabilities, signal: str) -> ExitPolicy:
        """The fastest thresholds of a signal at the floor: on every set of exits, alike or one per exit."""
        pool = self.pool(rows, probabilities, signal)
        risk = self.floor.risk
        families = add_thresholds(pool, [SIGNALS[signal]], [risk * share for share in BELOW_RISK])
        add_per_exit(pool, families, risk)
        best: ScoredPolicy | None = pool.fastest(risk)
        return Never() if best is None or best.cost >= pool.pricing.plain else best.policy

    def judged(self, rows: GateRows, probabilities: Probabilities, signal: str, policy: ExitPolicy) -> Judged:
        """What a policy of the signal saves and keeps on rows; agreement is the mean over documents."""
        pool = self.pool(rows, probabilities, signal)
        scored = pool.score(signal, policy)
        plain = pool.pricing.plain
        return Judged(str(policy), 1.0 - scored.risk, scored.cost, 1.0 - scored.cost / plain)


def probabilities_of(classifier: Classifier[Weights], rows: GateRows) -> Probabilities:
    """What the classifiers of all exits say, as a trace and a decoder read them: float32 [rows, exits]."""
    device = torch.device("cpu")
    columns = [classifier.at(place, device)(rows.states[place]) for place in range(len(rows.states))]
    return torch.stack(columns, dim=1).numpy()


def judged_gates(found: GateFit, rows: GateRows, prices: GatePrices) -> Classifier[Weights]:
    """The gates with what held-out rows say of them, exit by exit.

    auroc: of agreement. better_than_chance: whether tokens that leave there save more than they lose, at the
    training's lambda, by more than chance does in one of twenty.
    """
    from sklearn.metrics import roc_auc_score

    probabilities, agrees = probabilities_of(found.gates, rows), rows.agrees.numpy()
    arrives = np.ones(len(rows), dtype=np.bool_)
    auroc, better = list[float](), list[bool]()
    for place, leave in enumerate(prices.leave):
        right = int(agrees[place].sum())
        told_apart = min(right, len(rows) - right) >= RAREST_CLASS
        auroc.append(float(roc_auc_score(agrees[place], probabilities[:, place])) if told_apart else math.nan)
        leaves = arrives & (probabilities[:, place] >= HALF)
        gain = (prices.stay - float(leave)) / prices.plain - found.multiplier * ~agrees[place]
        better.append(gains_surely(np.where(leaves, gain, 0.0), rows.document))
        arrives &= ~leaves
    return replace(found.gates, auroc=np.array(auroc), better_than_chance=np.array(better))


def chosen_apart(groups: NDArray[np.int64], held_out: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Documents to choose by: bool [documents], of those that are not held out, one group of so many.

    groups: int64 [documents], see `offramp.workloads.shared_text.text_groups`.
    """
    free = np.unique(groups[~held_out])
    found: NDArray[np.bool_] = np.isin(groups, free[1::CHOSEN_EVERY]) & ~held_out
    return found
