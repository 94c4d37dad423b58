"""The pool of a search: what policies do on its documents, computed once, what they cost, and the best."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import InitVar, dataclass, field
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from offramp.errors import PolicyError
from offramp.policies.decisions import Decisions, replay_decisions
from offramp.policies.figures import PLAIN_DECODING
from offramp.policies.parameter_types import Exits
from offramp.policies.policy import ExitPolicy
from offramp.policies.prices import layers_executed
from offramp.policies.rules.short_list import read_short
from offramp.policies.rules.threshold import Threshold
from offramp.policies.signals import Signal
from offramp.scoring.documents import document_rows
from offramp.tracing.trace import Trace
from offramp.tuning.curves import Curve, ThresholdGrid, curve, make_grid
from offramp.tuning.floor import Floor, document_weights, token_losses
from offramp.tuning.pricing import DecisionCounts, Pricing, count_decisions

# Tokens on which every member of a family is tried; the best of each are then replayed on all of them.
SCREENED_TOKENS = 30_000


FULL_MODEL = "full model"
"""The family of plain decoding."""


class SearchEvidence:
    """Losses, curves and replays on one set of documents; none depends on a price or on how much may be lost.

    losses: float32 [tokens, exits of the trace], in the kind and the clip of the floor that it was made for.
    weights: float64 [tokens] of the mean over documents. below: the traced exits below L. executed: float64
    [layers], share of the layers that a token runs which leaves at exit l = 1..L. policies: threshold rules
    that were made before, by signal, exits and place on the signal's grid. listed: those that read the short
    list, by the ones that do not.
    """

    def __init__(self, trace: Trace, floor: Floor) -> None:
        self.trace = trace
        self.floor = floor
        self.losses = token_losses(trace, floor)
        self.weights = document_weights(trace)
        self.below: Exits = tuple(int(exit) for exit in trace.exits if exit < trace.layers)
        self.executed = layers_executed(trace.shape) / trace.layers
        self.policies: dict[tuple[str, Exits, int], Threshold] = {}
        self.listed: dict[ExitPolicy, ExitPolicy] = {}
        self._grids: dict[str, ThresholdGrid] = {}
        self._curves: dict[tuple[str, Exits], Curve] = {}
        self._outcomes: dict[ExitPolicy, tuple[float, DecisionCounts]] = {}

    def serves(self, floor: Floor) -> bool:
        """Whether losses are counted as under this floor."""
        return (floor.kind, floor.clip) == (self.floor.kind, self.floor.clip)

    def columns(self, exits: Exits) -> NDArray[np.int64]:
        """Columns of the trace that hold these traced exits."""
        return np.searchsorted(self.trace.exits, np.array(exits, dtype=np.int64)).astype(np.int64)

    def grid(self, signal: Signal) -> ThresholdGrid:
        """The thresholds of a signal at every exit below L."""
        if signal.name not in self._grids:
            self._grids[signal.name] = make_grid(self.trace, signal, self.columns(self.below))
        return self._grids[signal.name]

    def curve(self, signal: Signal, firing: Exits) -> Curve:
        """Risk and exits at every threshold, where tokens may leave at these exits."""
        key = (signal.name, firing)
        if key not in self._curves:
            places = [self.below.index(exit) for exit in firing]
            columns = self.columns(firing)
            self._curves[key] = curve(self.grid(signal), places, self.losses, columns, self.weights)
        return self._curves[key]

    def outcome(self, policy: ExitPolicy, decisions: Decisions | None = None) -> tuple[float, DecisionCounts]:
        """What a policy does to all tokens, at whatever price: mean loss over documents, and what is charged.

        Replayed on the documents unless that was done.
        """
        if policy not in self._outcomes:
            decisions = replay_decisions(policy, self.trace) if decisions is None else decisions
            counts = count_decisions(decisions, self.trace.layers)
            self._outcomes[policy] = self.risk_of(decisions.exits), counts
        return self._outcomes[policy]

    def risk_of(self, exits: NDArray[np.int64]) -> float:
        """Mean loss over documents of tokens that leave at these layers: int64 [tokens]."""
        taken = self.losses[np.arange(len(exits)), np.searchsorted(self.trace.exits, exits)]
        return float(taken @ self.weights)

    @cached_property
    def short_list(self) -> SearchEvidence:
        """The same documents with exits below L read off the short list."""
        return SearchEvidence(read_short(self.trace), self.floor)

    @cached_property
    def short_head(self) -> SearchEvidence:
        """The same documents with every exit read off the short list."""
        return SearchEvidence(read_short(self.trace, head=True), self.floor)

    @cached_property
    def screening(self) -> SearchEvidence:
        """On the first documents, in the order of their ids, that hold enough tokens; all if they are few."""
        rows = document_rows(self.trace)
        enough = int(np.searchsorted(np.cumsum(rows.tokens), SCREENED_TOKENS)) + 1
        if enough >= rows.count:
            return self
        return SearchEvidence(self.trace.subset(rows.index[:enough]), self.floor)


# Sums of losses may differ by so much with the order in which they are added up.
ROUNDING = 1e-12


@dataclass(frozen=True)
class ScoredPolicy:
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
    lent: InitVar[SearchEvidence | None] = None
    evidence: SearchEvidence = field(init=False)
    found: list[ScoredPolicy] = field(init=False, default_factory=list)

    def __post_init__(self, lent: SearchEvidence | None) -> None:
        """Compute the losses, unless they are lent."""
        self.evidence = SearchEvidence(self.trace, self.floor) if lent is None else lent

    def score(self, family: str, policy: ExitPolicy, decisions: Decisions | None = None) -> ScoredPolicy:
        """Replay a policy on the documents, unless that was done; the result is not kept in the pool."""
        risk, counts = self.evidence.outcome(policy, decisions)
        skip = 1.0 - counts.mean(self.evidence.executed)
        return ScoredPolicy(family, policy, risk, self.pricing.of_counts(counts), skip)

    def full_model(self) -> ScoredPolicy:
        """The full model on the documents, which may lose something against a reference."""
        whole = np.full(self.trace.token_count, self.trace.layers, dtype=np.int64)
        return ScoredPolicy(FULL_MODEL, PLAIN_DECODING, self.evidence.risk_of(whole), self.pricing.plain, 0.0)

    def add(self, scored: ScoredPolicy) -> None:
        """Keep one."""
        self.found.append(scored)

    def fastest(self, risk: float, *, full_depth: bool | None = None) -> ScoredPolicy | None:
        """The cheapest with at most this risk; of equally cheap ones the most cautious, then the first.

        full_depth: only of policies that leave no layer out, or only of those that do.
        """
        allowed = (scored for scored in self.found if scored.risk <= risk + ROUNDING)
        if full_depth is not None:
            allowed = (scored for scored in allowed if scored.policy.full_depth == full_depth)
        return min(allowed, key=_by_cost, default=None)

    def fastest_of_families(self, risk: float) -> list[ScoredPolicy]:
        """The same of every family that has one, the fastest family first."""
        best: dict[str, ScoredPolicy] = {}
        for scored in self.found:
            if scored.risk <= risk + ROUNDING and (
                scored.family not in best or _by_cost(scored) < _by_cost(best[scored.family])
            ):
                best[scored.family] = scored
        return sorted(best.values(), key=_by_cost)


def _by_cost(scored: ScoredPolicy) -> tuple[float, float]:
    return scored.cost, scored.risk


def front_of(found: Iterable[ScoredPolicy]) -> list[ScoredPolicy]:
    """Those that nothing beats in both risk and cost, from cautious to bold."""
    front: list[ScoredPolicy] = []
    for scored in sorted(found, key=lambda scored: (scored.risk, scored.cost)):
        if not front or scored.cost < front[-1].cost:
            front.append(scored)
    return front


def require_policies(trace: Trace) -> None:
    """Raise PolicyError for a trace on which no policy could be replayed."""
    if trace.layers > 1 and len(trace.exits) < 2:
        raise PolicyError(
            "no exit before the last was traced, so no policy could be replayed",
            where=str(trace.folder or "the trace"),
            fix="trace again with more exits= (--exits)",
        )
