"""Small random traces and made-up timings, for tests of policies, tuning and costs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from offramp.costs.probes import PROBES
from offramp.costs.timings import TimingsProfile
from offramp.models.shape import LayerShape, ModelShape
from offramp.tracing.facts import FACTS
from offramp.tracing.trace import Trace


def make_shape(layers: int = 6, *, head: int = 300, element_bytes: int = 2) -> ModelShape:
    layer = LayerShape("attention", 1000, 1000, 100, 10, 20, None, 0)
    return ModelShape((layer,) * layers, 10, head // 10, 10, head, element_bytes)


def with_states(shape: ModelShape, *places: int) -> ModelShape:
    """The shape with layers (counted from 0) that keep a recurrent state."""
    recurrent = LayerShape("recurrent", 1000, 1000, 0, 0, 0, None, 50)
    return replace(
        shape, layers=tuple(recurrent if i in places else layer for i, layer in enumerate(shape.layers))
    )


# Parts that are then derived from what was timed.
UNTIMED: dict[str, Any] = {"probe_seconds": {}, "lens_seconds": None, "key_value_seconds": None}


def timed(
    batches: tuple[int, ...] = (1, 4), seconds: tuple[float, ...] = (1.0, 2.0), **changes: Any
) -> TimingsProfile:
    """A machine on which every part of a step of six layers takes as long, by batch size."""
    each, layers = np.array(seconds), np.ones((len(batches), 6))
    values: dict[str, Any] = {
        "name": "bench",
        "source": "made up",
        "dtype": "bfloat16",
        "layers_count": 6,
        "batches": batches,
        "layer_seconds": layers * each[:, None],
        "layer_seconds_per_position": 0.0 * layers,
        "head_seconds": each,
        "probe_seconds": dict.fromkeys(PROBES, each),
        "lens_seconds": each,
        "key_value_seconds": layers * each[:, None],
        "overhead_seconds": each,
    }
    return TimingsProfile(**(values | changes))


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
    facts["final_logprob"] = -facts["final_logprob"]
    facts.update(given)
    return Trace.from_facts(
        facts,
        document=np.sort(np.arange(tokens) % documents).astype(np.int32),
        position=(np.arange(tokens) % 13).astype(np.int32),
        exits=traced,
        shape=shape or make_shape(layers),
    )
