"""Answers and their error rates: rules on constructed intervals, the schedule of looks, and simulation."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from benchmark_modules import benchmark

from offramp.decoding.measurement.answers import (
    ALPHA,
    PRECISE,
    Looks,
    Series,
    answer_of,
    check_worth,
    is_precise,
    is_settled,
    resolution_of,
)
from offramp.decoding.measurement.intervals import ratio_of
from offramp.decoding.measurement.results import Cluster, Interval
from offramp.errors import InputError

WORTH = 0.05


@pytest.mark.parametrize(
    ("low", "high", "answer", "settled"),
    [
        (0.99, 1.01, "equivalent", False),
        (1.01, 1.04, "equivalent", False),  # surely faster, and surely not worth it
        (1 / 1.05, 1.04, "unresolved", False),  # the margin itself is not within it
        (0.94, 1.06, "unresolved", False),
        (1.001, 1.2, "faster", False),
        (1.051, 1.2, "faster", True),
        (0.8, 0.999, "slower", False),
        (0.8, 0.951, "slower", True),
        (None, None, "unresolved", False),
    ],
)
def test_what_an_interval_answers(low: float | None, high: float | None, answer: str, settled: bool) -> None:
    value = 1.0 if low is None or high is None else math.sqrt(low * high)
    ratio = Interval(value, low, high)
    assert answer_of(ratio, WORTH) == answer
    assert is_settled(ratio, WORTH) is settled


def test_slower_mirrors_faster() -> None:
    for low, high in ((1.01, 1.04), (1.06, 1.3), (0.99, 1.2), (1.02, 1.09)):
        mirrored = {"faster": "slower", "slower": "faster"}
        there = answer_of(Interval(1.0, low, high), WORTH)
        back = answer_of(Interval(1.0, 1 / high, 1 / low), WORTH)
        assert back == mirrored.get(there, there)


def test_the_resolution_is_the_half_width() -> None:
    assert resolution_of(Interval(1.1, 1.1 / 1.02, 1.1 * 1.02)) == pytest.approx(0.02)
    assert resolution_of(Interval(1.1)) is None
    assert is_precise(Interval(1.0, 1 / (1 + PRECISE), 1 + PRECISE - 1e-9))
    assert not is_precise(Interval(1.0, 0.98, 1.02))
    assert not is_precise(Interval(1.0))


@pytest.mark.parametrize("worth", [0.0, -0.1, 1.0, float("nan")])
def test_a_worth_that_is_no_share_is_refused(worth: float) -> None:
    with pytest.raises(InputError, match="is no share"):
        check_worth(worth)


def test_looks_spend_all_there_is_and_no_more() -> None:
    looks = Looks()
    assert looks.due(0.2) is None
    first = looks.due(0.36)
    assert first == pytest.approx(1 - 0.1 * ALPHA)
    assert looks.due(0.5) is None  # once is enough
    second = looks.due(0.7)
    assert second == pytest.approx(1 - 0.2 * ALPHA)
    assert (1 - first) + (1 - second) + (1 - looks.last()) == pytest.approx(ALPHA)


def test_a_look_that_was_passed_over_is_saved_for_the_last() -> None:
    looks = Looks()
    assert looks.due(0.9) == pytest.approx(1 - 0.2 * ALPHA)
    assert looks.last() == pytest.approx(1 - 0.8 * ALPHA)
    assert Looks().last() == pytest.approx(1 - ALPHA)
    over = Looks()
    assert over.due(1.2) is None  # the budget is over: only the last look is left
    assert over.last() == pytest.approx(1 - ALPHA)


def test_a_series_is_the_clusters_of_its_prompts() -> None:
    series = Series()
    assert series.ratio is None
    assert not series.is_over(WORTH)
    for prompt, pairs in ((0, [0.1, 0.2]), (1, [0.3]), (0, [0.3])):
        series.add(prompt, pairs)
    expected = [Cluster(0, 0, pytest.approx(0.2), 3), Cluster(0, 1, pytest.approx(0.3), 1)]
    assert list(series.clusters) == expected
    assert series.look(0.9) == ratio_of(series.clusters, 0.9)
    assert series.ratio == ratio_of(series.clusters, 0.9)


def test_a_series_is_over_when_it_is_settled_or_precise() -> None:
    fast, equal, wide = Series(), Series(), Series()
    for prompt in range(6):
        fast.add(prompt, [0.3 + 0.02 * (prompt % 2)])
        equal.add(prompt, [0.002 * (prompt % 2)])
        wide.add(prompt, [0.2 * (prompt % 2)])
    assert fast.is_over(WORTH)
    assert equal.is_over(WORTH)
    assert not wide.is_over(WORTH)


# --- by simulation: the figures of benchmarks/timing.py with fewer runs

RUNS = 400
TOLERATED = ALPHA + 2 * math.sqrt(ALPHA * (1 - ALPHA) / RUNS)


@pytest.mark.parametrize("spread", [0.02, 0.03, 0.055, 0.10])
def test_answers_err_no_more_often_than_stated(spread: float) -> None:
    timing = benchmark("timing")
    world = timing.World(pair_spread=spread)
    equal = timing.rates(world, RUNS, 1)
    assert equal["faster"] + equal["slower"] <= TOLERATED
    assert equal["interval_misses"] <= TOLERATED
    assert equal["equivalent"] >= 0.9
    for way in (1, -1):
        margin = replace(world, ratio=1.05**way, prompt_spread=0.02)
        found = timing.rates(margin, RUNS, 2)
        assert found["equivalent"] <= TOLERATED
        assert found["interval_misses"] <= TOLERATED
    found = timing.rates(replace(world, ratio=1.1025, prompt_spread=0.02), RUNS, 3)
    assert found["faster"] >= 0.95
    assert found["interval_misses"] <= TOLERATED


def test_looking_at_every_prompt_at_the_full_level_would_err_far_more_often() -> None:
    """The test above can fail: a series that stops when it likes the answer, without a schedule, does."""
    random, wrong = np.random.default_rng(5), 0
    for _ in range(RUNS):
        series = Series()
        for prompt, ratio in enumerate(random.normal(0.0, 0.03, 12)):
            series.add(prompt, [ratio])
            if answer_of(series.ratio or Interval(1.0), 0.001) in ("faster", "slower"):
                wrong += 1
                break
    assert wrong / RUNS > 2 * TOLERATED


def test_what_drifts_slowly_cancels_between_neighbours() -> None:
    timing = benchmark("timing")
    calm = timing.rates(timing.World(pair_spread=0.02, drift=0.0), 60, 4)
    drifting = timing.rates(timing.World(pair_spread=0.02, drift=0.01), 60, 4)
    assert drifting["half_width"] < 1.5 * calm["half_width"] + 0.005
