"""Answers at batch sizes that were not timed say so."""

from __future__ import annotations

import numpy as np
import pytest

from offramp.costs.machine import Machine
from offramp.costs.timings import TimingsProfile
from offramp.models.shape import LayerShape
from offramp.tuning.predict import predict
from offramp.tuning.pricing import pricing_of
from offramp.tuning.ranking import machine_answers
from policy_traces import make_shape, make_trace

POLICY = "threshold:signal=max_prob,value=0.9,exits=3"


def timed() -> TimingsProfile:
    seconds, layers = np.array([1.0, 3.0]), np.ones((2, 6))
    return TimingsProfile(
        name="bench",
        source="made up",
        dtype="bfloat16",
        layers_count=6,
        batches=(1, 4),
        layer_seconds=layers * seconds[:, None],
        layer_seconds_per_position=0.0 * layers,
        head_seconds=seconds,
        probe_seconds={},
        lens_seconds=None,
        key_value_seconds=None,
        overhead_seconds=seconds,
    )


def test_machines_side_by_side_name_what_was_not_timed() -> None:
    trace = make_trace(tokens=200, documents=40)
    machines: list[Machine] = [timed()]
    first, second = machine_answers(trace, machines, (4, 8), 0.9)
    assert first.source == second.source
    assert first.source.startswith("made up; bench was timed at batch 1, 4, not at 8: ")
    [only] = machine_answers(trace, machines, (1,), 0.9)
    assert only.source == "made up"


@pytest.mark.parametrize(
    ("batch", "kv", "untimed"), [(1, "propagate", ""), (1, "recompute", "2"), (3, "propagate", "3")]
)
def test_predictions_name_what_was_not_timed(batch: int, kv: str, untimed: str) -> None:
    trace = make_trace(tokens=200, documents=40)
    notes = predict(POLICY, trace, hardware=timed(), batch=batch, kv=kv).notes
    said = [note for note in notes if "was timed at batch" in note]
    assert [note.partition("not at ")[2].partition(":")[0] for note in said] == ([untimed] if untimed else [])


def test_recomputing_a_recurrent_layer_costs_the_whole_layer() -> None:
    shape = make_shape(6)
    recurrent = LayerShape("recurrent", 1000, 1000, 0, 0, 0, None, 50)
    trace = make_trace(shape=type(shape)((*shape.layers[:5], recurrent), 10, 30, 10, 300, 2))
    costs = pricing_of(trace, timed(), 1, "recompute").costs
    # A row more takes two thirds of a second by the timings, a step of its own takes one.
    assert costs.key_value == pytest.approx([2 / 3] * 5 + [1.0])
