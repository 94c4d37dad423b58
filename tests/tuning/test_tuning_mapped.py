"""Tuning and predicting with mapped K and V: charged, and only from exits that have maps."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from tuning_traces import easy_and_hard

from offramp.costs.machine_registry import find_machine
from offramp.errors import InputError, PolicyError
from offramp.policies.decisions import replay_decisions
from offramp.policies.grammar import parse_policy
from offramp.policies.replay import replay, replay_intervals
from offramp.tracing.trace import Trace
from offramp.tuning.predict import predict
from offramp.tuning.pricing import pricing_of
from offramp.tuning.splits import split_roles
from offramp.tuning.tune import tune

POLICY = "threshold:signal=max_prob,value=0.8,exits=2+4"
FLOOR = {"agreement": 0.95}


def mapped(documents: int = 300, ranks: dict[int, int | None] | None = None, **options: Any) -> Trace:
    """A trace of six layers whose heads hold maps."""
    trace = easy_and_hard(documents, **options)
    ranks = {1: 2, 2: 2, 3: None, 4: 2} if ranks is None else ranks
    described = {"fingerprint": "f" * 64, "ranks": {str(exit): rank for exit, rank in ranks.items()}}
    heads = {"fingerprint": "h" * 64, "reading": None, "lens": False, "kv_maps": described}
    trace.provenance["request"] = {**trace.request, "heads": heads}
    return trace


@pytest.mark.parametrize("machine", [None, "h100"])
def test_the_price_of_decisions_is_that_of_its_replay(machine: str | None) -> None:
    trace = mapped(40)
    found = None if machine is None else find_machine(machine)
    pricing, plain = pricing_of(trace, found, 1, "mapped"), pricing_of(trace, found)
    decisions = replay_decisions(parse_policy(POLICY), trace)
    result = replay(trace, POLICY, machine=machine, kv="mapped")
    assert pricing.of_decisions(decisions) == pytest.approx(result.breakdown.total / trace.token_count)
    parts = pricing.parts(decisions)
    assert math.fsum(parts.values()) == pytest.approx(pricing.of_decisions(decisions))
    paid = sum(line.total for line in result.breakdown.lines if line.part == "K,V map")
    assert parts["K,V map"] == pytest.approx(paid / trace.token_count)
    assert pricing.of_decisions(decisions) == pytest.approx(plain.of_decisions(decisions) + parts["K,V map"])
    assert not pricing.same_prices(plain)
    assert pricing.same_prices(pricing_of(trace, found, 1, "mapped"))
    intervals = replay_intervals(trace, POLICY, machine=machine, kv="mapped")
    assert intervals.net_speedup.value == pytest.approx(result.predicted_speedup)


def test_a_policy_is_tuned_at_the_price_of_maps() -> None:
    trace = mapped(wrong=0.002)
    found, plain = tune(trace, FLOOR, "h100", kv="mapped"), tune(trace, FLOOR, "h100")
    assert found.kv == "mapped"
    assert not found.plain
    held = trace.subset(split_roles(trace, 0).report)
    result = replay(held, found.policy, machine="h100", kv="mapped")
    assert found.net_speedup.value == pytest.approx(result.predicted_speedup)
    assert found.net_speedup.value < plain.net_speedup.value
    assert found.model["heads"]["kv_maps"]["fingerprint"] == "f" * 64


def test_a_batch_pays_for_its_maps_too() -> None:
    trace = mapped(wrong=0.002)
    found = tune(trace, FLOOR, "h100", kv="mapped", batch=8)
    held = trace.subset(split_roles(trace, 0).report)
    result = replay(held, found.policy, machine="h100", kv="mapped", batch=8)
    assert found.net_speedup.value == pytest.approx(result.predicted_speedup)
    predicted = predict(found, held, hardware="h100", unseen=True)
    assert predicted.net_speedup.value == pytest.approx(result.predicted_speedup)


def test_exits_without_maps_are_refused() -> None:
    """Exit 5 of 6 needs none."""
    few = mapped(40, ranks={2: 2, 4: 2})
    with pytest.raises(InputError, match="exit 1 of the trace has no K,V maps") as caught:
        tune(few, FLOOR, "h100", kv="mapped")
    assert "--exits 2,4" in caught.value.fix
    predict(POLICY, few, hardware="h100", kv="mapped")
    with pytest.raises(PolicyError, match="leaves at exit 3, which has no K,V maps"):
        predict("static:exit=3", few, hardware="h100", kv="mapped")
    predict("static:exit=5", few, hardware="h100", kv="mapped")
    # Nothing leaves at the exit of a filter.
    filtered = "filtered:signal=margin,value=0.5,exit=3,policy=[static:exit=4]"
    predict(filtered, few, hardware="h100", kv="mapped")


def test_a_trace_without_maps_is_refused() -> None:
    trace = easy_and_hard(40)
    for call in (
        lambda: tune(trace, FLOOR, "h100", kv="mapped"),
        lambda: predict(POLICY, trace, hardware="h100", kv="mapped"),
        lambda: pricing_of(trace, None, 1, "mapped"),
    ):
        with pytest.raises(PolicyError, match="hold no K,V maps"):
            call()


def test_other_maps_than_it_was_tuned_with_are_refused() -> None:
    tuned, other = tune(mapped(wrong=0.002), FLOOR, "h100", kv="mapped"), mapped(40, seed=1)
    other.provenance["request"]["workload"] = {"name": "others", "fingerprint": "w2"}
    assert any("K and V by mapped" in note for note in predict(tuned, other, hardware="h100").notes)
    other.request["heads"]["kv_maps"]["fingerprint"] = "e" * 64
    with pytest.raises(PolicyError, match="tuned with the K,V maps ffffffffffff, and these are eeeeeeeeeeee"):
        predict(tuned, other, hardware="h100")
    predict(tuned, other, hardware="h100", kv="propagate")
    predict(replace(tuned, kv="propagate"), other, hardware="h100", kv="mapped")


def test_the_exits_of_an_oracle_are_those_it_takes() -> None:
    trace = mapped(40)
    result = replay(trace, "oracle:which=saturation", kv="mapped")
    assert set(np.unique(result.exits)) <= {1, 2, 3, 4, 5, 6}
    few = mapped(40, ranks={4: 2})
    with pytest.raises(PolicyError, match="which has no K,V maps"):
        replay(few, "oracle:which=saturation", kv="mapped")
