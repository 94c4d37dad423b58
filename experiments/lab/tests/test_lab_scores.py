"""Family 6: one half chooses a score, the other confirms it; intervals hold for all scores together."""

from __future__ import annotations

import hashlib
import itertools

import numpy as np
import pytest
from scipy import stats

from offramp_lab.runs import ORACLE
from offramp_lab.scores import by_chance, correlations, score_validity

NAMES = [f"run-{place:02}" for place in range(1, 33)]


def test_the_first_half_chooses_and_the_second_confirms() -> None:
    generator = np.random.default_rng(0)
    savings = generator.normal(size=32)
    order = sorted(NAMES, key=lambda name: hashlib.sha256(f"offramp lab half {name}".encode()).hexdigest())
    first, second = ([NAMES.index(name) for name in half] for half in (order[:16], order[16:]))
    luck = generator.normal(size=32)
    luck[first] = savings[first]  # perfect where it is chosen, worthless where it is judged
    scores = {"luck": luck, "mean_kl": savings + 0.1 * generator.normal(size=32), ORACLE: savings}
    found = score_validity(NAMES, scores, savings, permutations=999)
    assert found.choice is not None
    assert (found.choice.score, found.choice.found, found.halves) == ("luck", pytest.approx(1.0), (16, 16))
    assert found.choice.confirmed == pytest.approx(stats.spearmanr(luck[second], savings[second]).statistic)
    assert not found.holds
    assert {*found.table["score"]} == set(scores)
    del scores["luck"]
    found = score_validity(NAMES, scores, savings, permutations=999)
    assert found.holds
    assert found.choice is not None
    assert found.choice.score == "mean_kl", "the oracle is no candidate"
    assert 0.5 < found.choice.detectable < 0.7


def test_few_or_equal_trainings_tell_nothing() -> None:
    savings = np.arange(23.0)
    few = score_validity(NAMES[:22], {"x": savings[:22]}, savings[:22], permutations=99)
    assert (few.halves, few.choice) == ((11, 11), None)
    assert few.untold == "11 trainings in the second half, 12 are needed"
    assert score_validity(NAMES[:23], {"x": savings}, savings, permutations=99).halves == (11, 12)
    none = score_validity(NAMES[:24], {"x": np.arange(24.0)}, np.zeros(24), permutations=99)
    assert "are equal" in none.untold
    assert none.table.empty
    assert not none.holds


def test_the_p_value_is_that_of_all_orders() -> None:
    scores, savings = np.array([3.0, 1.0, 2.0, 5.0, 4.0]), np.array([1.0, 1.0, 2.0, 4.0, 3.0])
    every = [
        stats.spearmanr(scores, savings[list(order)]).statistic for order in itertools.permutations(range(5))
    ]
    drawn = by_chance(scores, savings, 20_000)
    assert np.unique(drawn.round(6)) == pytest.approx(np.unique(np.round(every, 6)))
    for limit in (0.3, 0.7, 0.9):
        assert np.mean(drawn >= limit) == pytest.approx(np.mean(np.array(every) >= limit), abs=0.015)


def test_null_worlds_confirm_no_more_than_they_may_and_intervals_hold_together() -> None:
    worlds, false, held = 100, 0, 0
    for seed in range(worlds):
        generator = np.random.default_rng(seed)
        savings, shared = generator.normal(size=32), generator.normal(size=32)
        scores = {f"s{place}": shared + generator.normal(size=32) for place in range(6)}
        found = score_validity(NAMES, scores, savings, permutations=499)
        false += found.holds
        held += ((found.table["low"] <= 0) & (found.table["high"] >= 0)).all()
    assert false <= 0.05 * worlds + 3 * np.sqrt(worlds * 0.05 * 0.95)
    assert held / worlds > 0.88


def test_intervals_of_one_score_are_those_of_a_plain_bootstrap() -> None:
    generator = np.random.default_rng(5)
    savings = generator.normal(size=30)
    scores = savings + generator.normal(size=30)
    (one,) = correlations({"x": scores, "constant": np.ones(30)}, savings).itertuples()
    z = []
    for _ in range(1500):
        drawn = generator.integers(30, size=30)
        z.append(np.arctanh(stats.spearmanr(scores[drawn], savings[drawn]).statistic))
    found = np.arctanh(stats.spearmanr(scores, savings).statistic)
    far = np.quantile(np.abs(np.array(z) - found), 0.95)
    assert (one.low, one.high) == pytest.approx((np.tanh(found - far), np.tanh(found + far)), abs=0.05)
