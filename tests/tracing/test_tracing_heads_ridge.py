"""The ridge regression behind a linear lens, against plain solutions on the rows themselves."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from fitting_cases import plain_ridge
from hypothesis import given, settings
from hypothesis import strategies as st

from offramp.tracing.fitting.ridge import (
    PENALTIES,
    NormalEquations,
    candidate_penalties,
    choose_penalty,
    fit_ridge,
    held_out_errors,
    sums_bytes,
)

HIDDEN = 5


def rows(seed: int, count: int, *, noise: float = 0.3) -> tuple[np.ndarray, np.ndarray]:
    """x with features of very different sizes and a mean, and y = A x + b + noise."""
    truth = np.random.default_rng(0)
    weight, bias = truth.normal(size=(HIDDEN, HIDDEN)), truth.normal(size=HIDDEN)
    generator = np.random.default_rng(seed)
    x = generator.normal(size=(count, HIDDEN)) * [100.0, 1.0, 0.1, 1.0, 1.0] + [50.0, 0.0, 1.0, 0.0, -2.0]
    return x, x @ weight.T + bias + noise * generator.normal(size=(count, HIDDEN))


def sums_of(x: np.ndarray, y: np.ndarray) -> NormalEquations:
    sums = NormalEquations.empty(x.shape[1])
    sums.add(torch.from_numpy(x), [torch.from_numpy(y)])
    return sums


def direct_error(
    fit: tuple[np.ndarray, np.ndarray], held_out: tuple[np.ndarray, ...], penalty: float
) -> float:
    weight, bias = plain_ridge(*fit, penalty)
    x, y = held_out
    return float(((y - x @ weight.T - bias) ** 2).sum(1).mean())


@pytest.mark.parametrize("penalty", [0.0, 1e-3, 1e4])
def test_the_map_is_the_ridge_solution(penalty: float) -> None:
    x, y = rows(1, 60)
    ((weight, bias),) = fit_ridge(sums_of(x, y), penalty)
    plain_weight, plain_bias = plain_ridge(x, y, penalty)
    np.testing.assert_allclose(weight, plain_weight, rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(bias, plain_bias, rtol=1e-7, atol=1e-8)


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 40), max_size=4), st.sampled_from([torch.float32, torch.bfloat16]))
def test_rows_in_any_pieces_give_the_same_sums(cuts: list[int], dtype: torch.dtype) -> None:
    x, y = (torch.from_numpy(part).to(dtype) for part in rows(2, 40))
    whole = NormalEquations.empty(HIDDEN)
    whole.add(x, [y])
    pieces, several = NormalEquations.empty(HIDDEN), NormalEquations.empty(HIDDEN)
    bounds = [0, *sorted(cuts), 40]
    for number, (start, stop) in enumerate(itertools.pairwise(bounds)):
        (pieces if number % 2 else several).add(x[start:stop], [y[start:stop]])
    total = pieces
    total += several
    assert total.count == whole.count == 40
    for name in ("x", "y", "xx", "xy", "yy"):
        torch.testing.assert_close(getattr(total, name), getattr(whole, name), rtol=1e-12, atol=1e-9)
        assert getattr(total, name).dtype == torch.float64


def test_held_out_errors_are_those_of_the_rows() -> None:
    fit, held_out = rows(4, 25), rows(5, 17)
    penalties = np.array([1e-6, 1e-2, 1.0, 50.0, 1e5])
    found = held_out_errors(sums_of(*fit), sums_of(*held_out), penalties)[0]
    np.testing.assert_allclose(
        found, [direct_error(fit, held_out, penalty) for penalty in penalties], rtol=1e-7
    )


@pytest.mark.parametrize("count", [4, 8, 200])
def test_the_penalty_of_least_held_out_error_is_chosen(count: int) -> None:
    fit, held_out = rows(6, count, noise=3.0), rows(7, 40, noise=3.0)
    penalty, explained = choose_penalty(sums_of(*fit), sums_of(*held_out))
    candidates = PENALTIES * np.trace(np.cov(fit[0].T, bias=True)) / HIDDEN
    np.testing.assert_allclose(candidate_penalties(sums_of(*fit)), candidates, rtol=1e-9)
    errors = [direct_error(fit, held_out, candidate) for candidate in candidates]
    assert penalty == pytest.approx(candidates[int(np.argmin(errors))])
    y = held_out[1]
    assert explained[0] == pytest.approx(1.0 - min(errors) / y.var(0).sum(), rel=1e-6)


def test_nothing_to_explain_is_explained_by_nothing() -> None:
    x, _ = rows(8, 20)
    y = np.ones((20, HIDDEN))
    assert choose_penalty(sums_of(x, y), sums_of(x[:5], y[:5]))[1].tolist() == [0.0]


def test_the_memory_of_the_sums_is_stated_rightly() -> None:
    sums = [NormalEquations.empty(64, targets) for targets in (1, 3)]
    per_fold = sum(one.xx.nbytes + one.xy.nbytes for one in sums)
    assert sums_bytes(64, [1, 3]) == 2 * per_fold
