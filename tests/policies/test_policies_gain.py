"""Where a gain comes from: worked by hand, and parts that sum to the whole gain of any breakdown."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from breakdown_examples import LAYERS, at, decisions_of
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.policies.cost_breakdown import GAIN_OF_PART, PARTS, Item, break_down, gain_of_usage, split_gain
from offramp.policies.decisions import Decisions
from offramp.policies.grammar import parse_policy
from offramp.policies.replay import replay
from offramp.policies.steps import BATCHINGS, count_plain, count_steps, group_into_steps
from offramp.tuning.floor import make_floor
from offramp.tuning.held_out import measure
from offramp.tuning.pricing import pricing_of
from policy_traces import make_shape, make_trace

PLAIN = 7 + 460 + 1000
"""One token of the full model at the prices of `bill_examples`."""


def gain_of(decisions: Decisions) -> dict[str, float]:
    steps = np.arange(len(decisions.exits))
    usage = count_steps(decisions, steps, LAYERS, repair=True)
    return split_gain(break_down(usage, count_plain(steps, LAYERS), at, len(steps))).to_json()


def test_every_part_of_a_breakdown_counts_for_one_part_of_the_gain() -> None:
    assert set(PARTS) <= set(GAIN_OF_PART)
    assert set(GAIN_OF_PART.values()) == {"layers", "head", "probes"}


def test_a_gain_by_hand() -> None:
    # One token leaves at exit 2 by a cosine: layers 3 and 4 are saved, their K and V made, a lens' head paid.
    found = gain_of(Decisions(np.array([2]), {2: ("hidden_cosine_to_previous",)}))
    assert found == pytest.approx(
        {"layers": (250 - 25) / PLAIN, "head": (1000 - 1100) / PLAIN, "probes": -2 / PLAIN}
    )


def test_a_probe_that_gives_the_output_saves_the_head_and_costs_its_own_product() -> None:
    found = gain_of(Decisions(np.array([2]), {2: ("margin",)}))
    assert found["head"] == pytest.approx(1000 / PLAIN)
    assert found["probes"] == pytest.approx(-1007 / PLAIN)


def test_the_full_model_gains_nothing_and_its_checks_cost() -> None:
    assert gain_of(Decisions(np.array([LAYERS]), {})) == {"layers": 0.0, "head": 0.0, "probes": 0.0}
    checked = gain_of(Decisions(np.array([LAYERS]), {2: ("margin",)}))
    assert checked == pytest.approx({"layers": 0.0, "head": 0.0, "probes": -1007 / PLAIN})


@settings(deadline=None)
@given(
    decisions=decisions_of(),
    batch=st.integers(1, 4),
    batching=st.sampled_from(list(BATCHINGS)),
    repair=st.booleans(),
)
def test_the_parts_sum_to_the_gain(decisions: Decisions, batch: int, batching: str, repair: bool) -> None:
    tokens = len(decisions.exits)
    steps = group_into_steps(np.arange(tokens, dtype=np.int32) // 2, min(batch, (tokens + 1) // 2), 0)
    usage = count_steps(BATCHINGS[batching](decisions, steps), steps, LAYERS, repair=repair)
    breakdown = break_down(usage, count_plain(steps, LAYERS), at, tokens)
    gain = split_gain(breakdown)
    assert gain.total == pytest.approx(1.0 - breakdown.total / breakdown.plain, abs=1e-12)
    assert gain == gain_of_usage(usage, count_plain(steps, LAYERS), at, tokens)


@pytest.mark.parametrize("kv", ["propagate", "recompute", "speculate"])
@pytest.mark.parametrize("machine", [None, "rtx4090"])
@pytest.mark.parametrize(
    "policy",
    [
        "threshold:signal=margin,value=0.5,exits=1+3",
        "shortlist:policy=[threshold:signal=hidden_cosine,value=0.6,exits=2+4]",
    ],
)
def test_a_replays_gain_is_that_of_its_breakdown(policy: str, kv: str, machine: str | None) -> None:
    plain = make_trace(shape=make_shape(head=1_000_000))
    trace = make_trace(shape=plain.shape, restricted_top1=plain.fact("top1"))
    result = replay(trace, policy, kv=kv, machine=machine)
    assert result.gain.total == pytest.approx(1.0 - 1.0 / result.predicted_speedup, abs=1e-12)
    layers = sum(line.total for line in result.breakdown.lines if line.part in ("layers", "K,V projection"))
    plain = sum(line.total for line in result.breakdown.plain_lines if line.part == "layers")
    overhead = sum(line.total for line in result.breakdown.plain_lines if line.part == "overhead")
    overhead -= sum(line.total for line in result.breakdown.lines if line.part == "overhead")
    assert result.gain.layers == pytest.approx((plain - layers + overhead) / result.breakdown.plain)


@pytest.mark.parametrize("policy", ["static:exit=3", "threshold:signal=margin,value=0.5,exits=1+3", "never"])
def test_tuning_says_where_a_gain_comes_from_as_replay_does(policy: str) -> None:
    trace = make_trace()
    held = measure(trace, parse_policy(policy), pricing_of(trace, None), make_floor({"agreement": 0.8}), 0)
    assert held.gain is not None
    assert held.gain.to_json() == pytest.approx(replay(trace, policy).gain.to_json())
    assert held.net_speedup.value is not None
    assert held.gain.total == pytest.approx(1.0 - 1.0 / held.net_speedup.value, abs=1e-12)


def test_a_map_of_states_counts_for_the_layers() -> None:
    """Another part that leaves K and V behind is part of what skipping layers costs."""
    assert GAIN_OF_PART["K,V map"] == GAIN_OF_PART["K,V projection"] == "layers"


def test_other_prices_split_the_same_usage_otherwise() -> None:
    usage, plain = (
        {Item("layers", 1): 1},
        {Item("layers", 1): 1, Item("layers", 2): 1, Item("final head", 4): 1},
    )
    assert gain_of_usage(usage, plain, at, 1).layers == pytest.approx(110 / 1210)
    free = lambda rows: replace(at(rows), head=0.0)  # noqa: E731
    assert gain_of_usage(usage, plain, free, 1).head == 0.0
