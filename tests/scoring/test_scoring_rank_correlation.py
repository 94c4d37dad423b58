"""Rank correlations of drawn points against scipy on points written out one by one."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from offramp.scoring.estimate import kendall

SEEDS = st.integers(0, 2**32 - 1)


def tied_points(generator: np.random.Generator, *, missing: bool):
    """Two firsts and a second of few levels, so that many are tied; some without a value."""
    count = int(generator.integers(3, 10))
    values = generator.integers(0, 5, (3, count)).astype(np.float64)
    if missing:
        values[generator.random(values.shape) < 0.2] = np.nan
    return values[:2], values[2]


def written_out(first, second, times):
    known = np.isfinite(first) & np.isfinite(second)
    repeated = [np.repeat(values[known], times[known].astype(int)) for values in (first, second)]
    return repeated[0], repeated[1]


def slow_kendall(first, second, times) -> float:
    one, other = written_out(first, second, times)
    concordant = untied_one = untied_other = 0
    for i in range(len(one)):
        for j in range(i):
            concordant += np.sign(one[i] - one[j]) * np.sign(other[i] - other[j])
            untied_one += one[i] != one[j]
            untied_other += other[i] != other[j]
    return concordant / np.sqrt(untied_one * untied_other) if untied_one * untied_other else np.nan


@given(SEEDS, st.booleans())
def test_drawn_points_as_if_written_out(seed: int, missing: bool) -> None:
    generator = np.random.default_rng(seed)
    firsts, second = tied_points(generator, missing=missing)
    count = len(second)
    weights = generator.multinomial(count, np.full(count, 1 / count), size=3).astype(np.float64)
    taus = kendall(firsts, second, weights)
    for draw, times in enumerate(weights):
        for place, first in enumerate(firsts):
            one, other = written_out(first, second, times)
            constant = len(set(one)) < 2 or len(set(other)) < 2
            tau = np.nan if constant else stats.kendalltau(one, other).statistic
            assert taus[draw, place] == pytest.approx(tau, nan_ok=True)
            assert taus[draw, place] == pytest.approx(slow_kendall(first, second, times), nan_ok=True)


@given(SEEDS)
def test_turning_one_coordinate_round_turns_the_sign(seed: int) -> None:
    generator = np.random.default_rng(seed)
    firsts, second = tied_points(generator, missing=False)
    weights = np.ones((1, len(second)))
    there = kendall(firsts, second, weights)
    assert kendall(-firsts, second, weights) == pytest.approx(-there, nan_ok=True)
    assert kendall(firsts, -second, weights) == pytest.approx(-there, nan_ok=True)
    known = there[np.isfinite(there)]
    assert np.all(np.abs(known) <= 1 + 1e-12)
