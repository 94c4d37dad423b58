"""Names of K,V strategies and batchings, and lengths of drafts, as types: imported when one is looked up."""

from __future__ import annotations

from collections.abc import Collection
from typing import Annotated, Any, Literal

from offramp.kit.numbers import Count
from offramp.kit.rules import Beside, OneOf


def _strategies() -> Collection[str]:
    from offramp.policies.kv import STRATEGIES

    return STRATEGIES


def _batchings() -> Collection[str]:
    from offramp.policies.steps import BATCHINGS

    return BATCHINGS


StrategyName = Annotated[str, OneOf("strategy for K and V", _strategies)]
BatchingName = Annotated[str, OneOf("batching", _batchings)]
DraftLength = Literal["auto"] | Count
"""Tokens drafted before a verification, at most; auto adapts itself while it decodes."""


def _charged_together(batch: int, given: Any) -> bool:
    from offramp.policies.kv import STRATEGIES

    return batch == 1 or STRATEGIES[given.kv].batches


BatchOf = Annotated[
    Count,
    Beside(_charged_together, "1 with kv {kv}, charged for one sequence at a time", "give 1, or another kv"),
]
"""Sequences decoded together, beside the strategy `kv`: not each is charged for several."""
