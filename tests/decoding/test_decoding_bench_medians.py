"""Medians against hand-worked numbers, and their intervals against what is known of them."""

from __future__ import annotations

import numpy as np
import pytest

from offramp.decoding.measurement.intervals import SAMPLES_NEEDED, median
from offramp.decoding.measurement.results import Interval


@pytest.mark.parametrize("count", [1, 2, SAMPLES_NEEDED - 1])
def test_few_samples_have_no_interval(count: int) -> None:
    assert median([3.0] * count) == Interval(3.0)


def test_the_number_of_samples_needed_is_where_the_extremes_cover_the_median() -> None:
    def coverage(count: int) -> float:
        return 1.0 - 2.0 * 0.5**count

    assert coverage(SAMPLES_NEEDED - 1) < 0.95 <= coverage(SAMPLES_NEEDED)


def test_the_interval_by_hand() -> None:
    # Of six samples the extremes cover 62/64, the next ones 50/64: a tenth of the way from one to the other,
    # so 5 x 0.1 / (1 + 4 x 0.1) of the distance between samples.
    found = median([13.0, 1.0, 2.0, 3.0, 5.0, 8.0])
    assert found == Interval(4.0, pytest.approx(1 + 5 / 14), pytest.approx(13 - 5 * 5 / 14))


@pytest.mark.parametrize("count", [6, 10, 18])
@pytest.mark.parametrize("skewed", [False, True])
def test_the_interval_holds_the_median_as_often_as_it_says(count: int, skewed: bool) -> None:
    draws = np.random.default_rng(count).normal(size=(4000, count))
    intervals = [median(row.tolist()) for row in (np.exp(draws) if skewed else draws)]
    true = 1.0 if skewed else 0.0
    held = [found.low <= true <= found.high for found in intervals if found.low and found.high]
    assert np.mean(held) == pytest.approx(0.95, abs=0.0125)
