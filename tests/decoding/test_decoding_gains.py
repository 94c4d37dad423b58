"""Product and interaction of single gains: a hand-worked example, and intervals that cover."""

from __future__ import annotations

import numpy as np
import pytest

from offramp.decoding.bench.gains import gains_of, product_of_gains
from offramp.decoding.bench.results import Interval


def test_a_hand_worked_example() -> None:
    # Alone 2 and 1.25 times as fast: together 2.5 times if nothing got in the way. Measured: 100 / 44.
    plain, first, second, together = ([seconds] * 6 for seconds in (100.0, 50.0, 80.0, 44.0))
    found = gains_of(plain, [first, second], together)
    assert found.product == Interval(2.5, 2.5, 2.5)
    assert found.interaction.value == pytest.approx((100 / 44) / 2.5)
    assert found.interaction.high is not None
    assert found.interaction.high < 1.0


def test_three_parts_multiply() -> None:
    assert product_of_gains([60.0], [[30.0], [20.0], [40.0]]).tolist() == [2 * 3 * 1.5]


def test_a_round_in_which_the_machine_was_slow_cancels() -> None:
    slow = np.array([1.0, 3.0, 1.0, 0.5, 1.0, 2.0])
    found = gains_of(100 * slow, [(50 * slow).tolist(), (80 * slow).tolist()], (40 * slow).tolist())
    assert found.interaction.value == pytest.approx(1.0)
    assert found.interaction.low == pytest.approx(1.0)


def test_medians_are_taken_last() -> None:
    plain, first, second, together = [10.0, 10.0, 10.0], [5.0, 10.0, 2.0], [5.0, 4.0, 10.0], [2.0, 4.0, 5.0]
    found = gains_of(plain, [first, second], together)
    assert found.product == Interval(4.0)  # of 4, 2.5 and 5
    assert found.interaction.value == pytest.approx(1.0)  # of 1.25, 1 and 0.4


@pytest.mark.parametrize("interaction", [0.9, 1.0, 1.1])
def test_the_interval_covers_the_true_interaction(interaction: float) -> None:
    """Twelve pairs with noise of the round and of each decoder, the noise skewed as timings' is."""
    random, runs = np.random.default_rng(round(100 * interaction)), 300
    covered = 0
    for _ in range(runs):
        shared = np.exp(0.2 * random.standard_normal(12))
        own = np.exp(0.04 * random.gamma(2.0, size=(4, 12)))
        seconds = np.array([100.0, 50.0, 80.0, 40.0 / interaction])[:, None] * shared * own
        plain, first, second, together = seconds
        found = gains_of(plain, [first.tolist(), second.tolist()], together).interaction
        assert found.low is not None
        assert found.high is not None
        covered += found.low <= interaction <= found.high
    assert 0.92 <= covered / runs <= 0.99
