"""Strategies for skipped layers: what is run later, and which policies leave nothing behind."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offramp.errors import PolicyError
from offramp.models.shape import LayerShape, ModelShape
from offramp.policies.cost_breakdown import CostBreakdown
from offramp.policies.decisions import Decisions
from offramp.policies.kv_cost import STRATEGIES, Run, deepest_after
from offramp.policies.policy import ExitPolicy
from offramp.policies.policy_cost import counted_at
from offramp.policies.replay import replay
from offramp.policies.rules.fixed import Never, StaticExit
from policy_traces import make_trace

CHECKS = "threshold:signal=margin,value=0.5,exits=1+3+5"


def part(breakdown: CostBreakdown, name: str) -> float:
    return sum(line.total for line in breakdown.lines if line.part == name)


def run_of(exits: list[int], documents: list[int], policy: ExitPolicy | None = None) -> Run:
    trace = make_trace(tokens=len(exits), layers=4)
    trace.document = np.array(documents, dtype=np.int32)
    return Run(trace, policy or Never(), Decisions(np.array(exits), {}), np.arange(len(exits)), 4)


def test_recomputing_by_hand() -> None:
    # Exits 1 and 2 before a token at 3; then one at 2 that no later token overtakes; another document.
    usage = STRATEGIES["recompute"].count(run_of([1, 2, 3, 2, 4, 1], [0, 0, 0, 0, 1, 1]))
    layers = {(item.place, item.rows): count for item, count in usage.items() if item.part == "layers"}
    # In the first document the second token takes the first one through layer 2, the third both through layer
    # 3; layer 4 is never run there. In the second one nobody waits for a token that goes deeper.
    assert layers == {(1, 1): 6, (2, 2): 1, (2, 1): 3, (3, 3): 1, (3, 1): 1, (4, 1): 1}
    assert not any(item.part == "K,V projection" for item in usage)


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=30))
def test_deepest_after_is_the_plain_maximum(tokens: list[tuple[int, int]]) -> None:
    tokens = sorted(tokens, key=lambda pair: pair[0])
    document = np.array([pair[0] for pair in tokens], dtype=np.int32)
    exits = np.array([pair[1] for pair in tokens])
    expected = [
        max((exits[j] for j in range(i + 1, len(tokens)) if document[j] == document[i]), default=0)
        for i in range(len(tokens))
    ]
    np.testing.assert_array_equal(deepest_after(exits, document), expected)


def test_a_recomputed_layer_costs_a_row_more_in_bytes_and_a_whole_layer_in_flops() -> None:
    trace = make_trace()
    result = replay(trace, CHECKS, kv="recompute")
    lines = [line for line in result.breakdown.lines if line.part == "layers"]
    waited = sum(line.count * (line.rows - 1) for line in lines)
    attended = float(trace.position.mean()) + 1
    alone = float(counted_at(trace, "bytes")(1).layers[0])
    # A row more reads and writes K,V of its own: 10 elements a position, 2 bytes each.
    assert waited > 0
    assert part(result.breakdown, "layers") == pytest.approx(
        sum(line.count for line in lines) * alone + waited * 2 * 10 * (attended + 1)
    )
    flops, one = counted_at(trace, "flops")(2).layers, counted_at(trace, "flops")(1).layers
    np.testing.assert_allclose(flops - one, one)
    # In FLOPs nothing is saved but what no later token needs.
    assert result.predicted_speedup_flops < replay(trace, CHECKS).predicted_speedup_flops


@pytest.mark.parametrize(
    "policy", [Never(), StaticExit(3), f"monotone:policy=[{CHECKS}]", "schedule:first=6,last=2,length=5"]
)
def test_monotone_policies_repair_nothing(policy: ExitPolicy | str) -> None:
    trace = make_trace()
    result, propagated = replay(trace, policy, kv="monotone"), replay(trace, policy)
    repair = part(propagated.breakdown, "K,V projection")
    assert part(result.breakdown, "K,V projection") == 0.0
    assert propagated.breakdown.total - result.breakdown.total == pytest.approx(repair)


def test_a_policy_that_may_go_deeper_is_refused() -> None:
    trace = make_trace()
    with pytest.raises(PolicyError, match=r"lets tokens go deeper(.|\n)*in document 0 one leaves at exit"):
        replay(trace, CHECKS, kv="monotone")
    # Nor is one that happens not to on this trace.
    still = "threshold:signal=margin,value=0,exits=3"
    assert (replay(trace, still).exits == 3).all()
    with pytest.raises(PolicyError, match="lets tokens go deeper than those before them\n"):
        replay(trace, still, kv="monotone")


def test_a_recurrent_layer_is_charged_whole_where_it_is_skipped() -> None:
    layer = LayerShape("recurrent", 800, 800, 0, 0, 0, None, 64)
    trace = make_trace(shape=ModelShape((layer,) * 6, 10, 30, 10, 300, 2))
    result = replay(trace, StaticExit(2))
    assert part(result.breakdown, "K,V projection") == 60 * 4 * 2 * (800 + 2 * 64)
    assert result.predicted_speedup == result.predicted_speedup_flops == pytest.approx(1.0)
