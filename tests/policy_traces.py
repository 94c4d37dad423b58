"""Small random traces for the tests of this package."""

from __future__ import annotations

from typing import Any

import numpy as np

from offramp.models.shape import LayerShape, ModelShape
from offramp.tracing.facts import FACTS
from offramp.tracing.trace import Trace


def make_shape(layers: int = 6, *, head: int = 300, element_bytes: int = 2) -> ModelShape:
    layer = LayerShape("attention", 1000, 1000, 100, 10, 20, None, 0)
    return ModelShape((layer,) * layers, 10, head // 10, 10, head, element_bytes)


def make_trace(
    *,
    seed: int = 0,
    tokens: int = 60,
    layers: int = 6,
    documents: int = 6,
    levels: int | None = None,
    exits: list[int] | None = None,
    shape: ModelShape | None = None,
    **given: Any,
) -> Trace:
    """Random facts; deeper exits agree more often and are surer. `levels`: round the signals, for ties."""
    generator = np.random.default_rng(seed)
    traced = np.array(exits if exits is not None else range(1, layers + 1), dtype=np.int64)
    depth = traced / layers
    size = (tokens, len(traced))
    agrees = generator.random(size) < 0.2 + 0.8 * depth
    agrees[:, -1] = True
    sure = np.clip(0.4 * generator.random(size) + 0.4 * depth + 0.2 * agrees, 0.0, 1.0)
    if levels is not None:
        sure = np.round(sure * levels) / levels
    facts: dict[str, Any] = {fact.name: generator.random(size).astype(fact.dtype) for fact in FACTS}
    facts["top1"] = np.where(agrees, 7, 1 + generator.integers(0, 3, size)).astype(np.int32)
    facts["max_prob"] = sure.astype(np.float32)
    facts["margin"] = (sure * sure).astype(np.float32)
    facts["entropy"] = (3.0 * (1.0 - sure)).astype(np.float32)
    facts.update(given)
    return Trace.from_facts(
        facts,
        document=np.sort(np.arange(tokens) % documents).astype(np.int32),
        position=(np.arange(tokens) % 13).astype(np.int32),
        exits=traced,
        shape=shape or make_shape(layers),
    )
