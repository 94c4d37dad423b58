"""Intervals of a replay: the replay's own figures, and the draws that the tuner's measuring makes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from offramp.costs.hardware import find_machine
from offramp.policies.grammar import parse_policy
from offramp.policies.replay import replay, replay_intervals
from offramp.tracing.manifest import DocumentRecord
from offramp.tracing.trace import Trace
from offramp.tuning.floor import make_floor
from offramp.tuning.held_out import DRAWS, measure
from offramp.tuning.pricing import pricing_of
from policy_traces import make_trace

THRESHOLD = "threshold:signal=max_prob,value=0.6,exits=2+4"
LEARNING = "bandit:signal=max_prob,value=0.6,exits=2+4,cost=0.5,exploration=1.0"
MONOTONE = "monotone:policy=[static:exit=3]"


@pytest.fixture(scope="module")
def trace() -> Trace:
    return make_trace(tokens=400, documents=44)


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        (THRESHOLD, {}),
        (THRESHOLD, {"machine": "h100"}),
        (THRESHOLD, {"kv": "recompute"}),
        (THRESHOLD, {"kv": "speculate", "draft_length": 3}),
        (LEARNING, {}),  # it goes on learning from document to document, and is walked once
        (MONOTONE, {"kv": "monotone"}),
        (THRESHOLD, {"machine": "h100", "batch": 2}),
        (THRESHOLD, {"machine": "h100", "batch": 3, "batching": "rebatch"}),
        ("static:exit=3", {"machine": "l4", "kv": "speculate"}),
        ("oracle:which=saturation", {}),
        ("never", {}),
    ],
)
def test_the_figures_are_the_replays_own(trace: Trace, policy: str, options: dict[str, Any]) -> None:
    found, whole = replay_intervals(trace, policy, **options), replay(trace, policy, **options)
    assert found.agreement.value == pytest.approx(whole.agreement, rel=1e-12)
    assert found.skip_ratio.value == pytest.approx(whole.skip_ratio, rel=1e-12, abs=1e-12)
    assert found.net_speedup.value == pytest.approx(whole.predicted_speedup, rel=1e-12)
    if options.get("batch", 1) < 3:  # 44 documents are 22 pairs, but only 15 groups of three
        assert found.net_speedup.low is not None
        assert found.net_speedup.low <= found.net_speedup.value <= found.net_speedup.high
    else:
        assert found.net_speedup.low is None
        assert found.net_speedup.no_interval == "15 groups of 3 documents; an interval needs 20, 60 documents"


@pytest.mark.parametrize("machine", [None, "h100"])
def test_the_intervals_are_those_of_the_tuners_measuring(trace: Trace, machine: str | None) -> None:
    """Two ways to the same draws: documents' whole costs here, costs of single tokens there."""
    profile = None if machine is None else find_machine(machine)
    found = replay_intervals(trace, THRESHOLD, machine=profile, seed=5, draws=DRAWS)
    held = measure(
        trace, parse_policy(THRESHOLD), pricing_of(trace, profile), make_floor({"agreement": 0.9}), seed=5
    )
    for name in ("agreement", "skip_ratio", "net_speedup"):
        one, other = getattr(found, name), getattr(held, name)
        np.testing.assert_allclose(
            (one.value, one.low, one.high), (other.value, other.low, other.high), rtol=1e-9
        )


def test_the_order_of_documents_changes_nothing(trace: Trace) -> None:
    turned = np.argsort(-trace.document, kind="stable")
    records = tuple(DocumentRecord(one.id, one.tokens) for one in trace.documents)
    reordered = Trace(
        exits=trace.exits,
        tokens={name: column[turned] for name, column in trace.token_columns.items()},
        facts=lambda name: trace.fact(name)[turned],
        documents=records,
        marginal=lambda: trace.marginal,
        shape=trace.shape,
        provenance=trace.provenance,
    )
    one, other = replay_intervals(trace, THRESHOLD), replay_intervals(reordered, THRESHOLD)
    for name in ("agreement", "skip_ratio", "net_speedup"):
        left, right = getattr(one, name), getattr(other, name)
        np.testing.assert_allclose(
            (left.value, left.low, left.high), (right.value, right.low, right.high), rtol=1e-12
        )


def test_too_few_documents_have_no_interval() -> None:
    found = replay_intervals(make_trace(tokens=60, documents=6), THRESHOLD)
    assert found.agreement.low is None
    assert found.agreement.no_interval == "6 documents; an interval needs 20"
