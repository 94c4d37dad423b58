from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.costs.machine_registry import find_machine
from offramp.costs.token import token_costs
from offramp.errors import InputError
from offramp.policies.decisions import replay_decisions
from offramp.policies.grammar import parse_policy
from offramp.policies.prices import decision_costs, exit_costs
from offramp.policies.replay import replay
from offramp.policies.rules.around import Filtered
from offramp.policies.rules.short_list import costs_for
from offramp.policies.rules.threshold import Threshold, Thresholds, signal_needs
from offramp.policies.signals import SIGNALS
from offramp.tracing.trace import Trace
from offramp.tuning.certificate import order_places, policy_losses, search_targets
from offramp.tuning.curves import curve, make_grid
from offramp.tuning.floor import document_weights, make_floor, token_losses
from offramp.tuning.held_out import measure
from offramp.tuning.pool import Pool, front_of
from offramp.tuning.pricing import Pricing, count_decisions, pricing_of
from offramp.tuning.search import add_exact, search_pool, targets_around
from offramp.tuning.threshold_family import (
    ThresholdFamily,
    _costs_behind,
    _curve_behind,
    _filters,
    add_filtered,
    fitting_sets,
    per_exit_thresholds,
    recorded_signals,
)
from policy_traces import make_shape, make_trace, with_states

POLICIES = (
    "never",
    "static:exit=2",
    "threshold:signal=max_prob,value=0.6,exits=2+4",
    "threshold:signal=hidden_cosine,value=0.5,exits=1+3",
    "monotone:policy=[threshold:signal=max_prob,value=0.6,exits=all]",
    "votes:need=all,of=[threshold:signal=max_prob,value=0.6,exits=3]+[threshold:signal=entropy,value=1.5,exits=3]",
)
EXIT_SETS = st.sets(st.integers(1, 5), min_size=1).map(sorted).map(tuple)
FLOOR = make_floor({"agreement": 0.9})


def pool_of(trace: Trace, floor: Any = FLOOR, batch: int = 1) -> Pool:
    costs = token_costs(trace.shape, float(trace.position.mean()), "bytes")
    return Pool(trace, floor, Pricing(replace(costs, batch=batch), "bytes moved", "test"))


def with_signals(**options: Any) -> Trace:
    """A random trace that also holds facts recorded on request."""
    rng = np.random.default_rng(options.get("seed", 0))
    size = (options.get("tokens", 60), options.get("layers", 6))
    more = {
        "restricted_margin": rng.random(size).astype(np.float32),
        "restricted_top1": rng.integers(0, 2, size).astype(np.int32),
        "restricted_max_prob": rng.random(size).astype(np.float32),
        "kl_to_previous": rng.random(size).astype(np.float32),
        "candidate_score": rng.random(size).astype(np.float32),
    }
    return make_trace(**options, **more)


@settings(max_examples=40, deadline=None)
@given(
    seed=st.integers(0, 999),
    signal=st.sampled_from(["max_prob", "entropy"]),
    exits=EXIT_SETS,
    levels=st.sampled_from([3, None]),
    kind=st.sampled_from(["agreement", "kl", "reference_agreement"]),
)
def test_a_curve_is_what_replaying_at_every_threshold_gives(
    seed: int, signal: str, exits: tuple[int, ...], levels: int | None, kind: str
) -> None:
    trace = make_trace(seed=seed, levels=levels)
    # Of a transformed model, which may lose tokens at exit L too.
    trace.reference_top1 = np.random.default_rng(seed).choice([1, 7], trace.token_count).astype(np.int32)
    floor = make_floor({kind: 0.5})
    losses, weights = token_losses(trace, floor), document_weights(trace)
    columns = np.array([exit - 1 for exit in exits])
    grid = make_grid(trace, SIGNALS[signal], np.arange(5))
    found = curve(grid, [exit - 1 for exit in exits], losses, columns, weights)
    for point in range(0, grid.points, max(1, grid.points // 12)):
        taken = replay_decisions(Threshold(signal, float(grid.values[point]), exits), trace).exits
        risk = float(losses[np.arange(len(taken)), taken - 1] @ weights)
        shares = [np.mean(taken == exit) for exit in (*exits, 6)]
        assert found.risk[point] == pytest.approx(risk, abs=1e-6)
        np.testing.assert_allclose(found.shares[point], shares)


def test_many_values_are_put_on_a_grid_from_cautious_to_bold() -> None:
    trace = make_trace(tokens=3000, documents=10)
    for name in ("max_prob", "entropy"):
        grid = make_grid(trace, SIGNALS[name], np.arange(5), points=100)
        assert grid.points == 100
        steps = np.diff(grid.values)
        assert ((steps < 0) if name == "max_prob" else (steps > 0)).all()
        fact = trace.fact(name)[:, :5].astype(np.float64)
        fires = fact >= grid.values[40] if name == "max_prob" else fact <= grid.values[40]
        np.testing.assert_array_equal(grid.ranks <= 40, fires)


def test_thresholds_outside_the_range_of_the_signal_are_left_out() -> None:
    cosine = np.full((60, 6), 0.5, dtype=np.float32)
    cosine[3] = 1.2
    trace = make_trace(hidden_cosine_to_previous=cosine)
    grid = make_grid(trace, SIGNALS["hidden_cosine"], np.arange(5))
    assert grid.values.tolist() == [0.5]


@settings(max_examples=5, deadline=None)
@given(seed=st.integers(0, 999), head=st.sampled_from([10, 300, 4000]))
def test_a_pool_tells_what_its_policies_do(seed: int, head: int) -> None:
    trace = with_signals(seed=seed, shape=make_shape(head=head))
    pool = pool_of(trace)
    search_pool(pool, FLOOR.risk)
    assert {"static exit", "patience", "votes"} <= {scored.family for scored in pool.found}
    for scored in pool.found[:: max(1, len(pool.found) // 40)]:
        decisions = replay_decisions(scored.policy, trace)
        costs = costs_for(scored.policy, pool.pricing.costs)
        assert scored.cost == pytest.approx(float(decision_costs(costs, decisions).mean()), rel=1e-9)
        losses = policy_losses(trace, scored.policy, FLOOR)
        assert scored.risk == pytest.approx(float(losses.mean()), abs=1e-6)
        assert scored.skip_ratio == pytest.approx(1 - decisions.exits.mean() / 6)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 999))
def test_thresholds_per_exit_are_never_worse_than_one_for_all(seed: int) -> None:
    trace = make_trace(seed=seed, tokens=300, shape=make_shape(head=100))
    pool = pool_of(trace)
    family = ThresholdFamily(pool, SIGNALS["max_prob"], (0.1,))
    exits = (2, 3, 4, 5)
    single = family.curve_of(exits)
    costs = family.costs_of(exits, single.shares)
    for price in (0.1, 1.0, 10.0):
        of_loss = price * pool.pricing.plain / FLOOR.risk
        best_single = float((costs + of_loss * single.risk).min())
        for chosen, values in per_exit_thresholds(family, exits, FLOOR.risk, (price,)):
            scored = pool.score("", Thresholds("max_prob", values, chosen))
            assert scored.cost + of_loss * scored.risk <= best_single * (1 + 1e-6)


def test_what_stands_behind_a_filter_costs_and_loses_what_its_replay_does() -> None:
    """Where checks are dear and a cheap signal knows who will not pass them, the fastest is filtered."""
    shape = make_shape(head=1000)
    plain = make_trace(tokens=400, documents=20, shape=shape)
    sure = plain.fact("max_prob")[:, 3:4] > 0.7
    maybe = sure | (np.random.default_rng(1).random(sure.shape) < 0.4)
    known = np.full((400, plain.layers), 0.5, dtype=np.float32)
    known[:, 2:3] = np.where(maybe, 0.9, 0.1)
    trace = make_trace(tokens=400, documents=20, shape=shape, hidden_cosine_to_previous=known)
    pool = pool_of(trace)
    prices = pool.pricing.costs
    dearer = {**prices.probes, "cosine": 0.001 * prices.plain}  # which moves no bytes
    pool.pricing = replace(pool.pricing, costs=replace(prices, probes=dearer))
    families = add_exact(pool, (0.05, 0.1))
    for family, exits in ((families["max_prob"], (4,)), (families["max_prob"], (3, 5))):
        for one in list(_filters(pool, {"hidden_cosine": families["hidden_cosine"]}, exits[0]))[::3]:
            found = _curve_behind(pool, family, exits, one.through)
            costs = _costs_behind(pool, family, exits, one, found)
            for point in range(0, family.grid.points, 50):
                policy = Filtered("hidden_cosine", one.value, one.exit, family.policy_at(exits, point))
                again = pool.score("", policy)
                assert (again.risk, again.cost) == pytest.approx((found.risk[point], costs[point]))
    add_filtered(pool, families, 0.1, (0.05, 0.1))
    filtered = [one for one in pool.found if isinstance(one.policy, Filtered) and one.risk <= 0.1]
    best = min(filtered, key=lambda one: one.cost).policy.policy
    exits, name = best.exits, best.signal
    alone = families[name].curve_of(exits)
    without = families[name].costs_of(exits, alone.shares)[alone.risk <= 0.1].min()
    assert min(one.cost for one in filtered) < without
    in_batch = pool_of(trace, batch=2)
    add_filtered(in_batch, families, 0.1, (0.1,))
    assert in_batch.found == []


def test_signals_that_compare_exits_are_checked_where_they_can_be() -> None:
    trace = with_signals()
    names = {signal.name for signal in recorded_signals(trace)}
    assert {"kl_to_previous", "candidate_score", "restricted_margin", "max_prob"} <= names
    assert "correctness" not in names
    back = SIGNALS["kl_to_previous"]
    # The check before must be the exit traced before; the whole set opens with its own first exit.
    assert fitting_sets(trace, back, [(3,), (2, 4), (1, 2, 3, 4, 5)]) == ((2, 3), (1, 2, 3, 4, 5))
    candidates = SIGNALS["candidate_score"]
    assert fitting_sets(trace, candidates, [(3,)]) == ()
    trace.provenance["request"] = {"heads": {"candidate_exit": 2}}
    assert fitting_sets(trace, candidates, [(3,), (1, 2, 4), (1,)]) == ((2, 3), (2, 4))


def test_the_candidates_are_each_faster_than_all_before() -> None:
    risks = np.array([0.0, 0.004, 0.004, 0.008, 0.02, 0.001])
    costs = np.array([9.0, 8.0, 7.0, 7.5, 1.0, 11.0])
    # By hand: at target 0 the first; from 0.004 on the third; the fourth is slower; the fifth risks too much.
    assert order_places(risks, costs, 10.0, 0.01) == [0, 2]
    assert order_places(risks, costs, 7.0, 0.01) == []


def test_the_front_drops_what_is_beaten() -> None:
    pool = pool_of(make_trace())
    add_exact(pool, targets_around(FLOOR.risk))
    front = front_of(pool.found)
    for one in front:
        assert not any(other.risk <= one.risk and other.cost < one.cost for other in pool.found)
    assert [scored.risk for scored in front] == sorted(scored.risk for scored in front)


def test_a_batch_in_lockstep_leaves_where_its_last_token_would() -> None:
    trace = make_trace(tokens=4000, documents=8)
    pool = pool_of(trace, batch=3)
    decisions = replay_decisions(Threshold("max_prob", 0.7, (2, 4)), trace)
    rng = np.random.default_rng(0)
    steps = rng.choice(decisions.exits, (200_000, 3)).max(axis=1)
    per_exit = exit_costs(pool.pricing.costs, signal_needs(SIGNALS["max_prob"], (2, 4))) / 3
    assert pool.pricing.of_decisions(decisions) == pytest.approx(per_exit[steps - 1].mean(), rel=2e-3)
    family = ThresholdFamily(pool, SIGNALS["max_prob"], (0.1,))
    found = family.curve_of((2, 4))
    point = int(np.flatnonzero(family.grid.values >= 0.7)[-1])
    assert family.costs_of((2, 4), found.shares)[point] == pytest.approx(
        pool.pricing.of_decisions(replay_decisions(family.policy_at((2, 4), point), trace)), rel=1e-9
    )


def test_bytes_are_counted_at_batch_one_only() -> None:
    trace = make_trace()
    for options, message in (
        ({"batch": 2}, "batch 1"),
        ({"kv": "recompute"}, "batch 1, and not of layers that run later"),
        ({"kv": "speculate"}, "the K,V strategy 'speculate' does not fall on each token alone"),
    ):
        with pytest.raises(InputError, match=message):
            pricing_of(trace, None, **options)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 999), levels=st.sampled_from([3, 8, None]))
def test_the_cheapest_threshold_within_each_target(seed: int, levels: int | None) -> None:
    trace = make_trace(seed=seed, levels=levels)
    pool = pool_of(trace)
    family = ThresholdFamily(pool, SIGNALS["max_prob"], ())
    found = family.curve_of((2, 4))
    costs = family.costs_of((2, 4), found.shares)
    targets = np.array(search_targets(0.3))
    chosen = found.cheapest(costs, targets)
    expected = []
    for target in targets:
        within = [point for point in range(len(costs)) if found.risk[point] <= target]
        if within:
            expected.append(min(within, key=lambda point: (costs[point], found.risk[point], point)))
    assert chosen == list(dict.fromkeys(expected))


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 999), text=st.sampled_from(POLICIES))
def test_parts_are_those_of_the_breakdown(seed: int, text: str) -> None:
    trace = make_trace(seed=seed, shape=make_shape(head=500))
    pricing = pricing_of(trace, find_machine("h100"))
    decisions = replay_decisions(parse_policy(text), trace)
    counts = count_decisions(decisions, trace.layers)
    breakdown = replay(trace, text, machine="h100").breakdown
    by_part: dict[str, float] = {}
    for line in breakdown.lines:
        by_part[line.part] = by_part.get(line.part, 0.0) + line.total / trace.token_count
    assert pricing.parts(decisions) == pytest.approx(by_part)
    mean = float(decision_costs(pricing.costs, decisions).mean())
    assert pricing.of_counts(counts) == pytest.approx(mean, rel=1e-9)
    assert sum(by_part.values()) == pytest.approx(mean, rel=1e-9)
    assert counts.mean(np.arange(1.0, 7.0)) == pytest.approx(decisions.exits.mean())


@pytest.mark.parametrize("text", POLICIES[1:3])
def test_recurrent_layers_above_an_exit_are_not_skipped(text: str) -> None:
    trace = make_trace(shape=with_states(make_shape(), 1, 4))
    pool = pool_of(trace)
    replayed = replay(trace, text).skip_ratio
    assert pool.score("", parse_policy(text)).skip_ratio == pytest.approx(replayed)
    held = measure(trace, parse_policy(text), pool.pricing, FLOOR, 0)
    assert held.skip_ratio.value == pytest.approx(replayed)
    # Those that the curves give are the same.
    add_exact(pool, targets_around(FLOOR.risk))
    for scored in pool.found[:: max(1, len(pool.found) // 10)]:
        assert scored.skip_ratio == pytest.approx(replay(trace, scored.policy).skip_ratio)
