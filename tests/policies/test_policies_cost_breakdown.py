"""Cost breakdowns: every line worked out by hand, and sums that equal token-by-token charging."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from breakdown_examples import LAYERS, at, decisions_of, lines
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.costs.token import TokenCosts
from offramp.kit.typed import to_json
from offramp.policies.cost_breakdown import (
    PARTS,
    CostBreakdown,
    Item,
    Usage,
    break_down,
)
from offramp.policies.decisions import Decisions
from offramp.policies.prices import decision_costs
from offramp.policies.replay import replay
from offramp.policies.steps import BATCHINGS, count_plain, count_steps, group_into_steps
from policy_traces import make_trace


def test_the_full_models_breakdown() -> None:
    assert lines(count_plain(np.arange(3), LAYERS))[0] == ("overhead", "", 1, 3, 7.0)
    breakdown = break_down(count_plain(np.arange(3), LAYERS), count_plain(np.arange(3), LAYERS), at, 3)
    assert breakdown.total == breakdown.plain == 3 * (7 + 460 + 1000)
    assert breakdown.speedup == 1.0


def test_lines_of_one_price_are_one_line_and_name_their_layers() -> None:
    def flat(rows: int) -> TokenCosts:
        return TokenCosts("flops", np.full(9, 3.0), 8.0, 8.0, {}, np.full(9, 1.0))

    usage = Usage({Item("layers", layer): 10 - layer for layer in (1, 2, 3, 5, 8, 9)})
    (line,) = break_down(usage, usage, flat, 1).lines
    assert (line.where, line.count, line.total) == ("layers 1-3, 5, 8-9", 32, 96.0)
    assert line.places == (1, 2, 3, 5, 8, 9)


def broken_down(decisions: Decisions) -> CostBreakdown:
    """Each token a step of its own."""
    steps = np.arange(len(decisions.exits))
    return break_down(
        count_steps(decisions, steps, LAYERS, repair=True), count_plain(steps, LAYERS), at, len(steps)
    )


@settings(deadline=None)
@given(decisions=decisions_of())
def test_a_breakdown_is_the_sum_of_its_tokens(decisions: Decisions) -> None:
    """What is counted is held by the plain loops of test_policies_steps, prices by hand."""
    one_by_one = [
        broken_down(decisions.at_rows(np.array([token]))).total for token in range(len(decisions.exits))
    ]
    np.testing.assert_allclose(decision_costs(at(1), decisions), one_by_one, rtol=1e-12)
    assert broken_down(decisions).total == pytest.approx(math.fsum(one_by_one), rel=1e-12)


@pytest.mark.parametrize("kv", ["propagate", "recompute", "speculate"])
@pytest.mark.parametrize("machine", [None, "rtx4090"])
def test_the_lines_are_what_is_charged(kv: str, machine: str | None) -> None:
    result = replay(make_trace(), "threshold:signal=margin,value=0.5,exits=1+3", kv=kv, machine=machine)
    breakdown = result.breakdown
    assert math.fsum(line.count * line.price for line in breakdown.lines) == breakdown.total
    assert breakdown.plain / breakdown.total == result.predicted_speedup
    assert result.gain.total == pytest.approx(1.0 - 1.0 / result.predicted_speedup, abs=1e-12)
    assert breakdown.unit == ("bytes" if machine is None else "seconds")
    if machine is not None:
        assert result.seconds_per_token == breakdown.total / 60
    shown = to_json(breakdown)
    assert math.fsum(line["total"] for line in shown["lines"]) == shown["total"] == breakdown.total
    probes = math.fsum(line.total for line in breakdown.lines if line.part == "probe")
    assert probes > 0


@pytest.mark.parametrize(
    ("decisions", "layers", "head", "probes"),
    [
        # One token leaves at exit 2 by a cosine: layers 3 and 4 saved, their K and V made, a lens' head paid.
        (Decisions(np.array([2]), {2: ("hidden_cosine_to_previous",)}), 250 - 25, 1000 - 1100, -2),
        # A probe that gives the output saves the head and costs its own product.
        (Decisions(np.array([2]), {2: ("margin",)}), 250 - 25, 1000, -1007),
        # The full model gains nothing, and its checks cost.
        (Decisions(np.array([LAYERS]), {}), 0, 0, 0),
        (Decisions(np.array([LAYERS]), {2: ("margin",)}), 0, 0, -1007),
    ],
)
def test_a_gain_by_hand(decisions: Decisions, layers: float, head: float, probes: float) -> None:
    found = vars(broken_down(decisions).gain)
    plain = 7 + 460 + 1000
    assert found == pytest.approx({"layers": layers / plain, "head": head / plain, "probes": probes / plain})


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
    gain = breakdown.gain
    assert gain.total == pytest.approx(1.0 - breakdown.total / breakdown.plain, abs=1e-12)


def test_every_part_counts_for_one_part_of_the_gain() -> None:
    # What leaves K and V behind is part of what skipping layers costs.
    assert PARTS["K,V map"].gain == PARTS["K,V projection"].gain == "layers"


def test_other_prices_split_the_same_usage_otherwise() -> None:
    usage, plain = (
        {Item("layers", 1): 1},
        {Item("layers", 1): 1, Item("layers", 2): 1, Item("final head", 4): 1},
    )
    assert break_down(usage, plain, at, 1).gain.layers == pytest.approx(110 / 1210)
    free = lambda rows: replace(at(rows), head=0.0)  # noqa: E731
    assert break_down(usage, plain, free, 1).gain.head == 0.0
