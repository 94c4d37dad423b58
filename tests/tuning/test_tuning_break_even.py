"""What would have to change for early exit to pay, held against pricing the same walk again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from benchmark_modules import benchmark
from hypothesis import example, given, settings
from hypothesis import strategies as st

from offramp.costs.probes import PROBES
from offramp.costs.token import TokenCosts
from offramp.policies.decisions import Decisions, replay_decisions
from offramp.policies.grammar import parse_policy
from offramp.policies.policy import ExitPolicy
from offramp.policies.prices import exit_costs, exit_costs_without_probes
from offramp.policies.rules.fixed import Never, StaticExit
from offramp.policies.rules.threshold import Threshold
from offramp.policies.signals import SIGNALS
from offramp.tracing.trace import Trace
from offramp.tuning.break_even import (
    LEVERS,
    ROUNDING,
    BreakEven,
    amount,
    break_even,
    checked_at_one_price,
)
from offramp.tuning.floor import document_losses, make_floor, token_losses
from offramp.tuning.pricing import Pricing
from offramp.tuning.threshold_family import exit_sets
from policy_traces import make_shape, make_trace

break_even_by_signal = benchmark("check_prices").break_even_by_signal


def prices(
    *,
    layers: int = 4,
    layer: float = 1.0,
    head: float = 4.0,
    probe: float = 0.5,
    key_value: float = 0.1,
    overhead: float = 0.0,
    batch: int = 1,
) -> TokenCosts:
    return TokenCosts(
        unit="seconds",
        layers=np.full(layers, layer),
        head=head,
        exit_head=head,
        probes=dict.fromkeys(PROBES, probe) | {"full head": head},
        key_value=np.full(layers, key_value),
        overhead=overhead,
        batch=batch,
    )


def two_of_four_leave() -> tuple[Trace, Threshold]:
    """Four tokens; at exit 2 of 4, two are sure enough to leave."""
    sure = np.zeros((4, 4), dtype=np.float32)
    sure[:2, 1] = 1.0
    top1 = np.full((4, 4), 7, dtype=np.int32)
    facts: dict[str, Any] = {"hidden_cosine_to_previous": sure, "top1": top1}
    trace = Trace.from_facts(facts, document=np.arange(4, dtype=np.int32), shape=make_shape(4))
    return trace, Threshold("hidden_cosine", 0.5, (2,))


def net_speedup(costs: TokenCosts, decisions: Decisions) -> float:
    """Plain cost over the policy's mean cost."""
    pricing = Pricing(costs, "the price list", "as given")
    return pricing.plain / pricing.of_decisions(decisions)


def rows_by_lever(rows: tuple[BreakEven, ...]) -> dict[str, BreakEven]:
    return {row.lever: row for row in rows}


def test_break_even_worked_by_hand() -> None:
    trace, policy = two_of_four_leave()
    rows = rows_by_lever(break_even(trace, policy, prices(probe=0.5), target=1.05))
    assert list(rows) == ["probe", "head", "layer", "key and value repair"]
    # Plain: 4 + 4. At exit 2: 2 layers, 2 repairs of 0.1, the head. Half leave there, all are checked once.
    unprobed = (6.2 + 8.0) / 2
    assert rows["probe"].now == 0.5
    assert "or less" in rows["probe"].sentence
    assert rows["probe"].needed == pytest.approx(8.0 / 1.05 - unprobed)
    assert rows["probe"].factor == pytest.approx((8.0 / 1.05 - unprobed) / 0.5)
    # (4 a + 4) = 1.05 (3 a + 0.1 + 4 + 0.5): the layer's price a.
    assert rows["layer"].needed == pytest.approx((1.05 * 4.6 - 4.0) / (4.0 - 1.05 * 3.0))
    assert "or more (" in rows["layer"].sentence
    # 4 + h = 1.05 (3 + 0.1 + h + 0.5): a head h that falls away leaves 0.95 of the speed at most.
    assert rows["head"].needed == pytest.approx((4.0 - 1.05 * 3.6) / 0.05)
    # 8 = 1.05 (3 + k + 4 + 0.5), k < 0.12 for two repairs of half the tokens.
    assert rows["key and value repair"].needed == pytest.approx(8.0 / 1.05 - 7.5)
    assert rows["key and value repair"].factor == pytest.approx((8.0 / 1.05 - 7.5) / 0.1)


def test_where_free_checks_do_not_suffice() -> None:
    trace, policy = two_of_four_leave()
    row = rows_by_lever(break_even(trace, policy, prices(), target=1.5))["probe"]
    assert (row.needed, row.factor) == (None, None)
    assert row.sentence.startswith("Even free checks would not")


def test_the_full_model_pays_at_no_price() -> None:
    rows = break_even(make_trace(layers=4), Never(), prices())
    assert [row.lever for row in rows] == [lever.name for lever in LEVERS]
    assert all(row.needed is None and row.sentence.startswith("No price") for row in rows)


def test_a_static_exit_has_no_probe_and_may_pay_whatever_repair_costs_nothing() -> None:
    rows = rows_by_lever(break_even(make_trace(layers=4), StaticExit(2), prices(key_value=0.0)))
    assert "probe" not in rows
    assert rows["key and value repair"].sentence.startswith("The policy is 1.05 times as fast")
    # 8 > 1.05 x 6 already: the head may grow to h with 4 + h = 1.05 (2 + h).
    assert rows["head"].needed == pytest.approx(1.9 / 0.05)


def test_a_full_head_check_is_replaced_by_one_that_gives_no_output() -> None:
    trace, _ = two_of_four_leave()
    sure = trace.fact("hidden_cosine_to_previous")
    facts: dict[str, Any] = {"max_prob": sure, "top1": trace.fact("top1")}
    with_head = Trace.from_facts(facts, document=trace.document, shape=trace.shape)
    row = rows_by_lever(break_even(with_head, Threshold("max_prob", 0.5, (2,)), prices()))["probe"]
    assert row.now == 4.0
    assert row.needed == pytest.approx(8.0 / 1.05 - 7.1)
    assert "the head's product beside" in row.sentence


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0031, "seconds", "3.1 ms"),
        (1.5, "seconds", "1.5 s"),
        (6.1e-6, "seconds", "6.1 µs"),
        (2.16e6, "bytes", "2.16 MB"),
        (0.0, "bytes", "0 B"),
        (12.0, "flops", "12 FLOPs"),
    ],
)
def test_amounts_read_well(value: float, unit: str, text: str) -> None:
    assert amount(value, unit) == text


policies = st.one_of(
    st.builds(
        Threshold,
        st.sampled_from(["max_prob", "entropy", "hidden_cosine"]),
        st.floats(0.05, 0.95),
        st.sampled_from([(2,), (1, 3), (2, 4, 5), "all"]),
    ),
    st.builds(StaticExit, st.integers(1, 5)),
)


PRICES = {
    "head": st.floats(0.1, 9.0),
    "probe": st.floats(0.01, 3.0),
    "key_value": st.floats(0.0, 0.5),
    "overhead": st.floats(0.0, 2.0),
    "batch": st.sampled_from([1, 4]),
}


def worst(target: float, **given: float) -> Any:
    """A case whose digits cancel: a price beside none, or a target that is reached at none."""
    usual = {"head": 3.0, "probe": 0.5, "key_value": 0.1, "overhead": 0.0, "batch": 1}
    return example(policy=StaticExit(3), seed=0, target=target, given={**usual, **given})


@worst(0.7, head=0.3, key_value=4.01e-12)
@worst(1.4, key_value=3e-14, overhead=1.7)
@worst(1.4, key_value=5e-324)
@worst(1.5)  # 9 / 6 without repairs
@worst(1.5 + 1e-12)
@worst(2.0 - 1e-11, head=0.1)  # the layers of both: 6 - 2 x 3
@settings(max_examples=80, deadline=None)
@given(
    policy=policies, seed=st.integers(0, 5), target=st.floats(0.7, 1.6), given=st.fixed_dictionaries(PRICES)
)
def test_the_needed_price_gives_exactly_the_target(
    policy: ExitPolicy, seed: int, target: float, given: dict[str, Any]
) -> None:
    trace = make_trace(seed=seed)
    costs = prices(layers=6, **given)
    decisions = replay_decisions(policy, trace)
    for row in break_even(trace, policy, costs, target):
        if row.lever == "probe":
            if row.needed is not None:
                assert net_speedup(*checked_at_one_price(costs, decisions, row.needed)) == pytest.approx(
                    target
                )
            else:
                free = net_speedup(*checked_at_one_price(costs, decisions, 0.0))
                assert free < target * (1.0 + ROUNDING)
            continue
        lever = next(lever for lever in LEVERS if lever.name == row.lever)
        if row.factor is not None:
            assert net_speedup(lever.scaled(costs, row.factor), decisions) == pytest.approx(target)
            assert row.needed == pytest.approx(row.factor * row.now)
        else:
            reached = {
                net_speedup(lever.scaled(costs, factor), decisions) >= target * (1.0 - 3.0 * ROUNDING)
                for factor in (0.0, 0.3, 1.0, 5.0, 1e4)
            }
            assert len(reached) == 1
            assert row.sentence.startswith("The policy is" if reached == {True} else "No price")


def brute_force_price(
    trace: Trace, costs: TokenCosts, name: str, floor: float, target: float
) -> tuple[float, float]:
    """The largest break-even price, and the smallest mean cost with free checks, over all thresholds."""
    signal = SIGNALS[name]
    losses = token_losses(trace, make_floor({"agreement": floor}))
    below = tuple(int(exit) for exit in trace.exits if exit < trace.layers)
    best, cheapest = -np.inf, np.inf
    for exits in dict.fromkeys([*((exit,) for exit in below), *exit_sets(below)]):
        columns = np.searchsorted(trace.exits, exits)
        for value in np.unique(trace.fact(signal.fact)[:, columns]):
            taken = replay_decisions(Threshold(name, float(value), exits), trace).exits
            if document_losses(trace, losses, taken).mean() > 1.0 - floor + 1e-12:
                continue
            free = exit_costs_without_probes(costs)[taken - 1].mean()
            checks = np.mean([sum(exit <= left for exit in exits) for left in taken])
            best = max(best, (costs.plain / target - free) / checks)
            cheapest = min(cheapest, free)
    return float(best), float(cheapest)


@pytest.mark.parametrize("floor", [0.9, 0.7])
def test_by_signal_against_brute_force(floor: float) -> None:
    trace = make_trace(seed=3, levels=8)
    costs = prices(layers=6, head=2.0)
    rows = {row.signal: row for row in break_even_by_signal(trace, costs, {"agreement": floor}, target=1.02)}
    for name in ("max_prob", "entropy"):
        best, cheapest = brute_force_price(trace, costs, name, floor, 1.02)
        row = rows[name]
        assert row.free_speedup == pytest.approx(costs.plain / cheapest)
        assert row.now == pytest.approx(2.0)
        if best < 0:
            assert row.needed is None
        else:
            assert row.needed == pytest.approx(best)
    assert {"max_prob", "margin", "entropy"} <= rows.keys()
    prices_needed = [-1.0 if row.needed is None else row.needed for row in rows.values()]
    assert prices_needed == sorted(prices_needed, reverse=True)


def test_by_signal_where_no_price_or_no_threshold_does() -> None:
    trace = make_trace(seed=0, tokens=200)
    for row in break_even_by_signal(trace, prices(layers=6, head=50.0), {"agreement": 0.999}, target=1.5):
        assert row.needed is None
        assert row.sentence.startswith(("Even if checks", "No threshold"))
        assert (row.policy is None) == (row.free_speedup is None)


def test_by_signal_an_opening_check_is_charged_and_never_left_by() -> None:
    generator = np.random.default_rng(4)
    settled = np.round(generator.random((60, 6)).astype(np.float32), 1)
    trace = make_trace(kl_to_previous=settled)
    costs = prices(layers=6, head=1.0)
    (row,) = (
        row
        for row in break_even_by_signal(trace, costs, {"agreement": 0.3}, target=1.01)
        if row.signal == "kl_to_previous"
    )
    assert row.needed is not None
    assert row.policy is not None
    policy = parse_policy(row.policy)
    decisions = replay_decisions(policy, trace)
    opener, *others = policy.checked_exits(6)
    assert not np.any(decisions.exits == opener)
    repriced = {opener: ("top1",), **dict.fromkeys(others, ("hidden_cosine_to_previous",))}
    free = replace(costs, probes={**costs.probes, "cosine": row.needed})
    mean = exit_costs(free, repriced)[decisions.exits - 1].mean()
    assert costs.plain / mean == pytest.approx(1.01)
