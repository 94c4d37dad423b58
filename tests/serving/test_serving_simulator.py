"""The simulator against a slow plain server, a hand-worked example, a formula, and what no server may do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from slow_server import contender, documents, prices, served_slowly, some_demand

from offramp.serving.request import ServerLimits
from offramp.serving.simulator import Demand, answers_of, simulate

DOCUMENTS = documents([100, 150, 150])


@pytest.mark.parametrize("rule", ["gain", "lockstep"])
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("stops", [(), (3,), (2, 4)])
@pytest.mark.parametrize(("rate", "rows", "budget"), [(0.004, 1, 8), (0.03, 4, 8), (0.5, 8, 16)])
def test_as_a_slow_server(
    rule: str, padded: bool, stops: tuple[int, ...], rate: float, rows: int, budget: int
) -> None:
    demand = some_demand(60, rate, seed=7)
    one, by = contender(stops), prices(stops, slope=0.001)
    limits = ServerLimits(rows=rows, budget=budget, rule=rule, padded=padded)  # type: ignore[arg-type]
    answers = answers_of(DOCUMENTS, demand)
    served = simulate(demand, answers, one, by, limits)
    slowly = served_slowly(demand, answers, one, by, limits)
    for fast, slow in zip(served.times, slowly, strict=True):
        assert fast == pytest.approx(slow, rel=1e-9)


def test_by_hand() -> None:
    """Two requests on one row of three layers: 1 s a layer, 0.65 s the head, 0.3 or 0.32 s beside."""
    demand = Demand(np.array([0.0, 1.0]), np.array([2, 5]), np.array([2, 1]), np.zeros((2, 2)))
    by = prices(layers=3, prompt=lambda tokens, past: 2.0 * tokens)
    one = contender(layers=3)
    served = simulate(demand, answers_of(DOCUMENTS, demand), one, by, ServerLimits(rows=1, budget=4))
    # Prompt of two tokens: 4 + 0.65 + 0.3; then a token: 3 + 0.65 + 0.32.
    assert served.times[0].tolist() == pytest.approx([4.95, 8.92])
    # Then five tokens in pieces of four and one: 8 + 0.3, and 2 + 0.65 + 0.3.
    assert served.times[1].tolist() == pytest.approx([8.92 + 8.3 + 2.95])
    assert served.busy == pytest.approx(served.times[1][-1])
    assert served.layers.tolist() == [3, 0]


def waits(busy: float, count: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Gaps before requests, and how long each waits: a row alone, services of 1 s, Poisson arrivals."""
    gaps = np.random.default_rng(seed).exponential(1.0 / busy, count)
    arrival, ones = np.cumsum(gaps), np.ones(count, dtype=np.int64)
    by = prices(prompt=lambda tokens, past: 1.0 - 0.65 - 0.3)
    demand = Demand(arrival, ones, ones, np.zeros((count, 2)))
    served = simulate(
        demand, [np.zeros(1, dtype=np.int64)] * count, contender(), by, ServerLimits(rows=1, budget=1)
    )
    return gaps, np.array([times[-1] for times in served.times]) - arrival - 1.0


@pytest.mark.parametrize("busy", [0.3, 0.6, 0.9])
def test_one_row_is_a_queue(busy: float) -> None:
    """Lindley (1952): who comes waits what the one before waited and was served, less the gap."""
    gaps, found = waits(busy, 2_000, 0)
    expected = 0.0
    for gap, wait in zip(gaps[1:].tolist(), found[1:].tolist(), strict=True):
        expected = max(0.0, expected + 1.0 - gap)
        assert wait == pytest.approx(expected, abs=1e-6)


def test_one_row_is_a_queue_with_constant_service() -> None:
    """M/D/1 (Pollaczek 1930, Khinchine 1932): mean wait = busy / (2 (1 - busy)) services."""
    assert waits(0.6, 120_000, 2)[1].mean() == pytest.approx(0.6 / (2 * 0.4), rel=0.02)


@settings(deadline=None, max_examples=60)
@given(
    count=st.integers(1, 40),
    rate=st.floats(0.001, 2.0),
    rows=st.integers(1, 8),
    extra=st.integers(0, 20),
    stops=st.sampled_from([(), (1,), (2, 5)]),
    rule=st.sampled_from(["gain", "lockstep"]),
    seed=st.integers(0, 100),
)
def test_every_request_is_served_once_and_in_order(
    count: int, rate: float, rows: int, extra: int, stops: tuple[int, ...], rule: str, seed: int
) -> None:
    demand = some_demand(count, rate, seed)
    answers = answers_of(DOCUMENTS, demand)
    limits = ServerLimits(rows=rows, budget=rows + extra, rule=rule)  # type: ignore[arg-type]
    served = simulate(demand, answers, contender(stops), prices(stops), limits)
    assert [len(times) for times in served.times] == demand.output.tolist()
    firsts = [times[0] for times in served.times]
    assert firsts == sorted(firsts)
    for times, arrival in zip(served.times, demand.arrival, strict=True):
        assert times[0] > arrival
        assert (np.diff(times) > 0).all()
    assert served.busy <= max(times[-1] for times in served.times) - demand.arrival[0] + 1e-6
    assert served.row_steps == int((demand.output - 1).sum())
    most = 6 * (demand.output - 1)
    assert (served.layers <= most).all()
    assert (served.lost <= np.maximum(demand.output - 1, 0)).all()


def test_gain_is_never_slower_than_the_full_model_where_leaving_is_free_to_refuse() -> None:
    """A policy's step is at most a checked full step; where checks pay, and rows leave, it is shorter."""
    demand = some_demand(80, 0.02, seed=3)
    answers = answers_of(DOCUMENTS, demand)
    plain = simulate(demand, answers, contender(), prices(), ServerLimits(rows=4, budget=8))
    gain = simulate(demand, answers, contender((2,)), prices((2,)), ServerLimits(rows=4, budget=8))
    assert gain.busy < plain.busy
    dear = prices((2,), probe=50.0 * (np.arange(9) > 0)[None])
    refused = simulate(demand, answers, contender((2,)), dear, ServerLimits(rows=4, budget=8))
    assert refused.busy == pytest.approx(plain.busy)
    assert not refused.lost.any()
