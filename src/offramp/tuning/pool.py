"""The pool of a search: policies with their risk and cost on the search documents, and the best of them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.policies.policy import ExitPolicy
from offramp.policies.walk import Walk
from offramp.tracing.trace import Trace
from offramp.tuning.evidence import Evidence
from offramp.tuning.exit_sets import Exits
from offramp.tuning.floor import Floor
from offramp.tuning.pricing import Pricing

# Sums of losses may differ by so much with the order in which they are added up.
ROUNDING = 1e-12


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

    lent: what policies do there, of another pool of the same documents; made anew without it.
    """

    trace: Trace
    floor: Floor
    pricing: Pricing
    lent: InitVar[Evidence | None] = None
    evidence: Evidence = field(init=False)
    found: list[Scored] = field(init=False, default_factory=list)

    def __post_init__(self, lent: Evidence | None) -> None:
        """Compute the losses, unless they are lent."""
        self.evidence = Evidence(self.trace, self.floor) if lent is None else lent

    @property
    def losses(self) -> NDArray[np.float32]:
        """What each token loses at each traced exit: float32 [tokens, exits of the trace]."""
        return self.evidence.losses

    @property
    def weights(self) -> NDArray[np.float64]:
        """Weights of the tokens in the mean over documents: float64 [tokens]."""
        return self.evidence.weights

    @property
    def below(self) -> Exits:
        """The traced exits below L."""
        return self.evidence.below

    def score(self, family: str, policy: ExitPolicy, walked: Walk | None = None) -> Scored:
        """Walk the documents through a policy, unless that was done; the result is not kept in the pool."""
        outcome = self.evidence.outcome(policy, walked)
        counts = outcome.counts
        skip = 1.0 - counts.mean(self.evidence.executed)
        return Scored(family, policy, outcome.risk, self.pricing.of_counts(counts), skip)

    def add(self, scored: Scored) -> None:
        """Keep one."""
        self.found.append(scored)

    def fastest(self, risk: float, *, full_depth: bool | None = None) -> Scored | None:
        """The cheapest with at most this risk; of equally cheap ones the most cautious, then the first.

        full_depth: only of policies that leave no layer out, or only of those that do.
        """
        allowed = (scored for scored in self.found if scored.risk <= risk + ROUNDING)
        if full_depth is not None:
            allowed = (scored for scored in allowed if scored.policy.full_depth == full_depth)
        return min(allowed, key=_by_cost, default=None)

    def fastest_of_families(self, risk: float) -> list[Scored]:
        """The same of every family that has one, the fastest family first."""
        best: dict[str, Scored] = {}
        for scored in self.found:
            if scored.risk <= risk + ROUNDING and (
                scored.family not in best or _by_cost(scored) < _by_cost(best[scored.family])
            ):
                best[scored.family] = scored
        return sorted(best.values(), key=_by_cost)


def _by_cost(scored: Scored) -> tuple[float, float]:
    return scored.cost, scored.risk


def front_of(found: Iterable[Scored]) -> list[Scored]:
    """Those that nothing beats in both risk and cost, from cautious to bold."""
    front: list[Scored] = []
    for scored in sorted(found, key=lambda one: (one.risk, one.cost)):
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
