"""What a policy's tokens take on one machine at one batch size: the objective of every search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from offramp.costs.machine import Machine
from offramp.costs.token import TokenCosts
from offramp.defaults import BYTES
from offramp.errors import InputError
from offramp.kit.typed import to_json
from offramp.policies.cost_breakdown import Gain, gain_of_parts, lines_of
from offramp.policies.decisions import Decisions
from offramp.policies.kv import STRATEGIES, maps_charged
from offramp.policies.policy import ExitPolicy
from offramp.policies.prices import (
    Needs,
    check_price,
    costs_of,
    decision_costs,
    exit_costs,
    exit_costs_without_probes,
    gives_output,
)
from offramp.policies.rules.short_list import costs_for
from offramp.policies.steps import count_steps
from offramp.scoring.documents import DocumentRows
from offramp.tracing.trace import Trace

Shares = NDArray[np.float64]


@dataclass(frozen=True)
class DecisionCounts:
    """What decisions are charged for, counted over its tokens.

    leaving: int64 [layers], tokens that leave at exit l = 1..L. needs: the facts read at each checked exit.
    probed: int64 [checked exits], tokens probed there. answered: those of them that leave there.
    """

    leaving: NDArray[np.int64]
    needs: Needs
    probed: NDArray[np.int64]
    answered: NDArray[np.int64]

    @property
    def tokens(self) -> int:
        """How many tokens were decided."""
        return int(self.leaving.sum())

    def mean(self, at_exits: NDArray[np.float64]) -> float:
        """Mean over tokens of what depends on the exit alone: at_exits float64 [layers]."""
        return float(self.leaving @ at_exits) / self.tokens


def count_decisions(decisions: Decisions, layers: int) -> DecisionCounts:
    """What decisions on a model of so many layers are charged for."""
    probed = [decisions.probed_at(place) for place in range(len(decisions.needs))]
    return DecisionCounts(
        leaving=np.bincount(decisions.exits - 1, minlength=layers),
        needs=decisions.needs,
        probed=np.array([rows.sum() for rows in probed], dtype=np.int64),
        answered=np.array(
            [
                (rows & (decisions.exits == exit)).sum()
                for rows, exit in zip(probed, decisions.needs, strict=True)
            ],
            dtype=np.int64,
        ),
    )


@dataclass(frozen=True)
class Pricing:
    """Prices of one step and how its cost falls on tokens.

    costs: of a step that decodes one token of each of `costs.batch` sequences. machine: its name. source:
    where the prices come from. full: the whole price list, where `costs` is that of outputs read off a short
    list.

    A batch runs in lockstep: a step leaves where the last of its tokens would. The others of a token's step
    are taken to be drawn at random from the same texts, so that a step leaves by exit l with the
    probability F(l)^batch, F(l) being the share of tokens that leave by l.
    """

    costs: TokenCosts
    machine: str
    source: str
    full: TokenCosts | None = None

    @property
    def listed(self) -> TokenCosts:
        """The whole price list."""
        return self.costs if self.full is None else self.full

    @property
    def batch(self) -> int:
        """Sequences decoded side by side."""
        return self.costs.batch

    @property
    def plain(self) -> float:
        """One token of the full model."""
        return self.listed.plain / self.batch

    def paid_by(self, policy: ExitPolicy) -> Pricing:
        """The pricing of a policy's own outputs."""
        return replace(self, costs=costs_for(policy, self.listed), full=self.listed)

    @property
    def of_full_model(self) -> Pricing:
        """The pricing of the full model's outputs."""
        return replace(self, costs=self.listed, full=None)

    def at_exits(self, needs: Needs) -> NDArray[np.float64]:
        """One token of a step that leaves at exit l = 1..L, all checks up to it charged: float64 [layers]."""
        return exit_costs(self.costs, needs) / self.batch

    def mean(self, at_exits: NDArray[np.float64], shares: Shares) -> NDArray[np.float64]:
        """Mean cost of a token: at_exits [exits], shares of tokens that leave there [..., exits] -> [...]."""
        if self.batch == 1:
            return np.asarray(shares @ at_exits)
        # Sums of shares may end a rounding above 1, which a large batch would raise to a power.
        reached = np.clip(np.cumsum(shares, axis=-1), 0.0, 1.0) ** self.batch
        return np.asarray(np.diff(reached, axis=-1, prepend=0.0) @ at_exits)

    def of_decisions(self, decisions: Decisions) -> float:
        """Mean cost of the tokens decided."""
        return self.of_counts(count_decisions(decisions, len(self.costs.layers)))

    def of_counts(self, counts: DecisionCounts) -> float:
        """Mean cost of the tokens that were counted."""
        if self.batch > 1:
            return float(self.mean(self.at_exits(counts.needs), counts.leaving / counts.tokens))
        total = float(counts.leaving @ exit_costs_without_probes(self.costs))
        for place, (exit, facts) in enumerate(counts.needs.items()):
            total += float(counts.probed[place]) * check_price(self.costs, facts)
            if gives_output(facts, short_list=self.costs.short_list):
                total -= float(counts.answered[place] * self.costs.heads[exit - 1])
        return total / counts.tokens

    def parts(self, decisions: Decisions) -> dict[str, float]:
        """Mean cost of a token by part of the cost breakdown (its `PARTS`); empty for a batch."""
        tokens = len(decisions.exits)
        if self.batch > 1:
            return {}
        steps, maps = np.arange(tokens, dtype=np.int64), bool(self.costs.maps)
        usage = count_steps(decisions, steps, len(self.costs.layers), repair=True, maps=maps)
        parts: dict[str, float] = {}
        for line in lines_of(usage, lambda rows: self.listed):
            parts[line.part] = parts.get(line.part, 0.0) + line.total / tokens
        return parts

    def gain(self, parts: Mapping[str, float]) -> Gain | None:
        """Where the gain of a token comes from, by its cost by part; None for a batch."""
        never = Decisions(np.full(1, len(self.costs.layers), dtype=np.int64), {})
        return gain_of_parts(parts, self.of_full_model.parts(never)) if parts else None

    def same_prices(self, other: Pricing) -> bool:
        """Whether every price, and so every choice, is the same."""
        mine, others = ((pricing.machine, to_json(pricing.costs)) for pricing in (self, other))
        return mine == others

    def of_documents(
        self, decisions: Decisions, rows: DocumentRows, weights: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Mean cost of a token for some weightings of documents: [draws, documents] -> float64 [draws]."""
        if self.batch == 1:
            return np.asarray(
                (weights @ rows.sums(decision_costs(self.costs, decisions))) / (weights @ rows.tokens),
                dtype=np.float64,
            )
        layers = len(self.costs.layers)
        leaving = rows.sums(np.eye(layers, dtype=np.float32)[decisions.exits - 1])
        shares = (weights @ leaving) / (weights @ rows.tokens)[:, None]
        return self.mean(self.at_exits(decisions.needs), shares)

    def without_probes(self, decisions: Decisions) -> float:
        """Mean cost of the same tokens with checks for free."""
        return self.of_decisions(decisions.unchecked())


def pricing_of(trace: Trace, machine: Machine | None, batch: int = 1, kv: str = "propagate") -> Pricing:
    """Seconds of a trace's tokens on a machine; bytes moved at batch 1 if there is none.

    kv: a strategy whose price falls on each token alone (`KeyValue.alone`).

    Raises InputError for a trace without tokens, a batch below 1, bytes at another batch than 1, another
    strategy, or what the machine cannot price; PolicyError for mapping without maps.
    """
    strategy = STRATEGIES[kv]
    if strategy.alone is None:
        raise InputError(
            f"the price of the K,V strategy {kv!r} does not fall on each token alone",
            where="kv= (--kv)",
            fix="choose one of: " + ", ".join(name for name, one in STRATEGIES.items() if one.alone),
        )
    if machine is None and (batch != 1 or not strategy.batches):
        raise InputError(
            "bytes moved are counted at batch 1, and not of layers that run later",
            where="batch= (--batch)" if batch != 1 else "kv= (--kv)",
            fix="name a machine: hardware= (--hardware)",
        )
    if batch != 1 and not strategy.batches:
        raise InputError(
            f"{kv} is charged for one sequence only", where="kv= (--kv)", fix="choose propagate, or batch 1"
        )
    at = partial(costs_of, trace, machine or "bytes", maps=maps_charged(trace, kv))
    costs = strategy.alone(at, batch, trace.shape)
    if machine is None:
        return Pricing(costs, BYTES, "counted from the model's shape, batch 1")
    return Pricing(costs, machine.name, machine.source)
