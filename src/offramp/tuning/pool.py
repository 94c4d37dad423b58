"""The pool of a search: policies with their risk and cost on the search documents, and the best of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.policies.policy import ExitPolicy
from offramp.policies.walk import Walk, walk
from offramp.tracing.trace import Trace
from offramp.tuning.exit_sets import Exits
from offramp.tuning.losses import document_weights, token_losses
from offramp.tuning.pricing import Pricing
from offramp.tuning.results import Floor


@dataclass(frozen=True)
class Scored:
    """A policy on the documents it is chosen on.

    family: the kind of policy, its signal and set of exits in words. risk: mean loss over documents. cost:
    mean cost of a token, in the pricing's unit.
    """

    family: str
    policy: ExitPolicy
    risk: float
    cost: float
    skip_ratio: float


@dataclass
class Pool:
    """Everything a search found on one set of documents at one pricing.

    losses: float32 [tokens, exits of the trace]. weights: float64 [tokens] of the mean over documents.
    """

    trace: Trace
    floor: Floor
    pricing: Pricing
    losses: NDArray[np.float32] = field(init=False)
    weights: NDArray[np.float64] = field(init=False)
    found: list[Scored] = field(init=False, default_factory=list)

    def __post_init__(self) -> None:
        """Compute the losses once."""
        self.losses = token_losses(self.trace, self.floor)
        self.weights = document_weights(self.trace)

    @property
    def below(self) -> Exits:
        """The traced exits below L."""
        return tuple(int(exit) for exit in self.trace.exits if exit < self.trace.layers)

    def columns(self, exits: Exits) -> NDArray[np.int64]:
        """Columns of the trace that hold these traced exits."""
        return np.searchsorted(self.trace.exits, np.array(exits, dtype=np.int64)).astype(np.int64)

    def risk_of(self, exits: NDArray[np.int64]) -> float:
        """Mean loss over documents of tokens that leave at these layers: int64 [tokens]."""
        taken = self.losses[np.arange(len(exits)), np.searchsorted(self.trace.exits, exits)]
        return float(taken @ self.weights)

    def score(self, family: str, policy: ExitPolicy, walked: Walk | None = None) -> Scored:
        """Walk the documents through a policy, unless that was done; the result is not kept."""
        walked = walk(policy, self.trace) if walked is None else walked
        skip = float(1.0 - np.mean(walked.exits) / self.trace.layers)
        return Scored(family, policy, self.risk_of(walked.exits), self.pricing.of_walk(walked), skip)

    def add(self, scored: Scored) -> None:
        """Keep one."""
        self.found.append(scored)

    def faster(self) -> list[Scored]:
        """Those that cost less than the full model."""
        return [scored for scored in self.found if scored.cost < self.pricing.plain]

    def fastest(self, risk: float, family: str | None = None) -> Scored | None:
        """The cheapest with at most this risk, of one family if it is named."""
        allowed = (
            scored for scored in self.found if scored.risk <= risk + 1e-12 and family in (None, scored.family)
        )
        return min(allowed, key=lambda scored: (scored.cost, scored.risk, str(scored.policy)), default=None)


def front_of(found: Iterable[Scored]) -> list[Scored]:
    """Those that nothing beats in both risk and cost, from cautious to bold."""
    front: list[Scored] = []
    for scored in sorted(found, key=lambda one: (one.risk, one.cost, str(one.policy))):
        if not front or scored.cost < front[-1].cost:
            front.append(scored)
    return front


def require_policies(trace: Trace) -> None:
    """Raise PolicyError for a trace on which no policy could be replayed."""
    if trace.layers > 1 and len(trace.exits) < 2:
        raise PolicyError(
            "no exit before the last was traced, so no policy could be replayed",
            where=str(trace.folder or "the trace"),
            fix="trace again with more --exits",
        )
