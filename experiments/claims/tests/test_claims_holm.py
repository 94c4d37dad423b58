"""Holm's adjustment, against the steps as he describes them and by simulation."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from common import LEVEL
from common import holm as holm_of


def holm(p_values: list[float | None]) -> list[float | None]:
    """The script's own, of a list; None is what is undefined."""
    adjusted = holm_of(pd.Series(p_values, dtype=float))
    return [None if np.isnan(value) else float(value) for value in adjusted]


P_VALUES = st.lists(st.one_of(st.none(), st.floats(0.0, 1.0)), max_size=12)


def step_down(p_values: list[float], level: float) -> set[int]:
    """Holm as he describes it: reject the smallest while p <= level / (hypotheses left)."""
    left = sorted(range(len(p_values)), key=p_values.__getitem__)
    rejected: set[int] = set()
    while left and p_values[left[0]] <= level / len(left):
        rejected.add(left.pop(0))
    return rejected


def test_holm_by_hand() -> None:
    assert holm([0.01, None, 0.04, 0.03]) == [pytest.approx(0.03), None, 0.06, 0.06]
    assert holm([]) == []
    assert holm([None]) == [None]


@given(P_VALUES, st.floats(0.001, 0.5))
def test_what_holm_claims_is_what_the_steps_reject(p_values: list[float | None], level: float) -> None:
    adjusted = holm(p_values)
    known = [value for value in p_values if value is not None]
    kept = [value for value in adjusted if value is not None]
    # 1e-12 apart, since p (m - i + 1) <= level and p <= level / (m - i + 1) round differently
    surely = {place for place, value in enumerate(kept) if value <= level * (1 - 1e-12)}
    perhaps = {place for place, value in enumerate(kept) if value <= level * (1 + 1e-12)}
    assert surely <= step_down(known, level) <= perhaps


@given(P_VALUES)
def test_holm_never_lowers_never_exceeds_one_and_keeps_the_order(
    p_values: list[float | None],
) -> None:
    adjusted = holm(p_values)
    pairs = [(p, q) for p, q in zip(p_values, adjusted, strict=True) if p is not None]
    assert [value is None for value in p_values] == [value is None for value in adjusted]
    assert all(p <= q <= 1.0 for p, q in pairs)
    assert sorted(pairs) == sorted(pairs, key=lambda pair: (pair[1], pair[0]))


@pytest.mark.parametrize("real", [0, 10])
@pytest.mark.parametrize("dependence", [0.0, 0.7])
def test_holm_any_false_claim_in_five_tables_of_a_hundred(dependence: float, real: int) -> None:
    """Twenty differences a table, some of them real; without Holm false claims would be common."""
    generator = np.random.default_rng(7)
    tables, differences = 4000, 20
    shared = generator.normal(size=(tables, 1)) * np.sqrt(dependence)
    scores = shared + generator.normal(size=(tables, differences)) * np.sqrt(1 - dependence)
    scores[:, :real] += 5.0
    p_values = 2 * stats.norm.sf(np.abs(scores))
    claims = np.array([holm(list(row)) for row in p_values]) <= LEVEL
    false_claims = claims[:, real:].any(axis=1).mean()
    assert 0.01 < false_claims < LEVEL + 3 * np.sqrt(LEVEL * (1 - LEVEL) / tables)
    assert (p_values[:, real:] <= LEVEL).any(axis=1).mean() > 0.15
    assert real == 0 or claims[:, :real].mean() > 0.9
