"""Trends over models: Theil-Sen by hand, which models count, what is claimed, and how often in noise."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from claims_tables import FLOOR, MACHINE, Line, tables_of
from hypothesis import assume, given
from hypothesis import strategies as st

from trends import kendall_p_value, theil_sen, trends

MONTHS = [f"20{year:02}-0{month}" for year in range(19, 26) for month in (1, 5, 9)]


def models(figures: Iterable[float], *, workload: str = "prose", **facts: Any) -> list[Line]:
    """One independent model per figure; facts: one value each."""
    return [
        Line(
            f"m{place:02}",
            workload,
            scores={"composite": float(figure)},
            facts={name: values[place] for name, values in facts.items()},
        )
        for place, figure in enumerate(figures)
    ]


def trend_of(lines: list[Line], figure: str = "composite", against: str = "released") -> pd.Series:
    table = trends(*tables_of(lines))
    return table[(table["figure"] == figure) & (table["against"] == against)].squeeze()


@given(st.integers(0, 2**32 - 1))
def test_slope_interval_and_p_value_by_hand(seed: int) -> None:
    generator = np.random.default_rng(seed)
    count = int(generator.integers(4, 7))
    x, y = generator.integers(0, 4, count).astype(float), generator.normal(size=count).round(1)
    assume(len(set(x)) > 1)
    found = theil_sen(x, y)
    pairs = [(i, j) for i, j in itertools.combinations(range(count), 2) if x[i] != x[j]]
    slopes = [(y[j] - y[i]) / (x[j] - x[i]) for i, j in pairs]
    assert found["slope"] == pytest.approx(np.median(slopes))
    assert found["intercept"] == pytest.approx(np.median(y) - np.median(slopes) * np.median(x))
    assert min(slopes) - 1e-12 <= found["slope_low"] <= found["slope"] <= found["slope_high"]
    reached = [abs(statistic(x, y[list(order)])) for order in itertools.permutations(range(count))]
    assert found["p_value"] == pytest.approx(np.mean(np.array(reached) >= abs(statistic(x, y))))


def statistic(x: np.ndarray, y: np.ndarray) -> float:
    pairs = itertools.combinations(range(len(x)), 2)
    return sum(np.sign(x[j] - x[i]) * np.sign(y[j] - y[i]) for i, j in pairs)


def test_intervals_cover_the_true_slope_at_their_rate() -> None:
    generator, x, runs = np.random.default_rng(1), np.arange(12.0), 200
    slopes = [theil_sen(x, 0.3 * x + generator.normal(size=12)) for _ in range(runs)]
    covered = np.mean([slope["slope_low"] <= 0.3 <= slope["slope_high"] for slope in slopes])
    assert covered == pytest.approx(0.95, abs=3 * np.sqrt(0.05 * 0.95 / runs))


def test_p_value_of_a_constant_and_of_many_tied_models() -> None:
    assert kendall_p_value(np.arange(5.0), np.ones(5)) == 1.0
    x, y = np.repeat(np.arange(5.0), 2), np.arange(10.0)
    assert kendall_p_value(x, y) < 0.001 < kendall_p_value(x, y[::-1] * (-1) ** np.arange(10))


def test_a_planted_slope_is_found_in_its_unit_and_claimed() -> None:
    figures = [0.9 - 0.05 * place + 0.004 * (-1) ** place for place in range(9)]
    released = [f"{2016 + place}-07" for place in range(9)]
    parameters = [10.0 ** (8 + place / 4) for place in range(9)]
    lines = models(figures, released=released, parameters=parameters)
    by_year, by_size = trend_of(lines), trend_of(lines, against="log10 parameters")
    assert by_year["slope"] == pytest.approx(-0.05, abs=0.003)
    assert by_year["slope_low"] < -0.05 < by_year["slope_high"] < 0
    assert (by_year["models"], by_year["claimed"]) == (9, "yes")
    # A year more moves the line's value at 2016.5, the first point, by the slope.
    assert by_year["intercept"] + by_year["slope"] * 2016.5 == pytest.approx(0.9, abs=0.01)
    assert by_size["slope"] == pytest.approx(-0.2, abs=0.012)


def test_noise_is_claimed_in_no_more_than_five_tables_of_a_hundred() -> None:
    """Twelve models, two properties, four texts: any claim in the table is false."""
    generator = np.random.default_rng(3)
    tables, claimed, unadjusted = 30, 0, 0
    for _ in range(tables):
        lines = [
            line
            for workload in "abcd"
            for line in models(
                generator.normal(size=12),
                workload=workload,
                released=[MONTHS[place] for place in generator.permutation(20)[:12]],
                parameters=10.0 ** generator.uniform(8, 11, 12),
            )
        ]
        table = trends(*tables_of(lines))
        assert len(table) == 8
        claimed += (table["claimed"] == "yes").any()
        unadjusted += ((table["slope_low"] > 0) | (table["slope_high"] < 0)).any()
    assert claimed / tables <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / tables)
    assert unadjusted / tables > 0.15


def test_one_point_a_base_and_none_of_transformed_models() -> None:
    years = [f"202{place}-01" for place in range(5)]
    lines = models([0.1, 0.2, 0.3, 0.4, 0.5], released=years)
    tuned = replace(lines[0], model="m00-it", base="m00", scores={"composite": 9.0}, facts={"stage": "tuned"})
    int8 = replace(lines[1], transform="int8", scores={"composite": 9.0})
    pd.testing.assert_series_equal(trend_of([tuned, int8, *lines]), trend_of(lines))


def test_a_base_is_stood_for_by_its_base_stage_where_no_model_has_its_name() -> None:
    tuned = Line("x0", base="x", scores={"composite": 0.0}, facts={"released": "2020-01", "stage": "tuned"})
    base = Line("x1", base="x", scores={"composite": 1.0}, facts={"released": "2021-01", "stage": "base"})
    other = models([0.5], released=["2023-01"])
    assert trend_of([tuned, base, *other])["slope"] == pytest.approx((0.5 - 1.0) / 2)


def test_generations_are_of_one_family() -> None:
    facts = {"family": ["a"] * 4 + ["b"] * 4 + [None], "generation": [1, 2, 3, 4, 4, 3, 2, 1, 7]}
    table = trends(*tables_of(models([1, 2, 3, 4, 1, 2, 3, 4, 0], **facts)))
    assert table.set_index("family")["slope"].to_dict() == {"a": 1.0, "b": -1.0}


def test_few_models_have_a_slope_without_interval_and_without_claim() -> None:
    found = trend_of(models([0.1, 0.2, 0.3], released=MONTHS[:3]))
    assert found[["slope_low", "slope_high", "p_value"]].isna().all()
    assert found["claimed"] == "too few models"
    assert trends(*tables_of(models([0.1, 0.2], released=["2020-01", "2020-01"]))).empty


def test_four_in_order_have_an_interval_but_may_be_chance() -> None:
    found = trend_of(models([0.1, 0.2, 0.3, 0.4], released=MONTHS[:4]))
    assert found["slope_low"] > 0
    assert found["p_value"] == pytest.approx(2 / 24)
    assert found["claimed"] == "no"


def test_savings_are_figures_too() -> None:
    lines = [
        Line(f"m{place}", saved={"predicted": 0.1 * place}, facts={"released": f"202{place}-01"})
        for place in range(5)
    ]
    assert trend_of(lines, f"saving, {FLOOR} | {MACHINE}")["slope"] == pytest.approx(0.1)
