"""The strategies for K and V by name: what `kv=` takes; and which one decodes with some options."""

from __future__ import annotations

from offramp.decoding.options import DecodingOptions
from offramp.decoding.strategies.lookup import LookUp
from offramp.decoding.strategies.mapped import Mapped
from offramp.decoding.strategies.monotone import Monotone
from offramp.decoding.strategies.propagate import Propagate
from offramp.decoding.strategies.recompute import Recompute
from offramp.decoding.strategies.speculate import Speculate
from offramp.decoding.strategies.strategy import Strategy

STRATEGIES: dict[str, type[Strategy]] = {
    strategy.of.name: strategy for strategy in (Propagate, Mapped, Recompute, Speculate, Monotone)
}
"""Strategies by the name that `kv=` takes; see `offramp.policies.kv` for what each promises."""


def strategy_of(options: DecodingOptions) -> type[Strategy]:
    """What decodes with some options: the strategy for K and V, or that with drafts from the text."""
    return LookUp if options.lookup else STRATEGIES[options.kv]
