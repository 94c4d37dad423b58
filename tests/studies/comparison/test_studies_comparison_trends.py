"""Trends over models: Theil-Sen by hand, which models count, what is claimed, and how often in noise."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from comparison_traces import bare_row
from hypothesis import given
from hypothesis import strategies as st

from offramp.studies.comparison.results import Row, Trend
from offramp.studies.comparison.trends import kendall_p_value, theil_sen, trends_of

MONTHS = [f"20{year:02}-0{month}" for year in range(19, 26) for month in (1, 5, 9)]


def models(figures, *, workload: str = "prose", **facts) -> list[Row]:
    """One independent model per figure; facts: one value each."""
    return [
        bare_row(
            f"m{place:02}",
            workload,
            scores={"composite": float(figure)},
            facts={name: values[place] for name, values in facts.items()},
        )
        for place, figure in enumerate(figures)
    ]


def trend_of(rows: list[Row], figure: str = "composite", against: str = "released") -> Trend:
    (found,) = (one for one in trends_of(rows) if one.figure == figure and one.against == against)
    return found


@given(st.integers(0, 2**32 - 1))
def test_slope_interval_and_p_value_by_hand(seed: int) -> None:
    generator = np.random.default_rng(seed)
    count = int(generator.integers(4, 7))
    x = generator.integers(0, 4, count).astype(float)
    y = generator.normal(size=count).round(1)
    if len(set(x)) < 2:
        return
    slope, intercept, p_value = theil_sen(x, y)
    slopes = [
        (y[j] - y[i]) / (x[j] - x[i]) for i, j in itertools.combinations(range(count), 2) if x[i] != x[j]
    ]
    assert slope.value == pytest.approx(np.median(slopes))
    assert intercept == pytest.approx(np.median(y) - np.median(slopes) * np.median(x))
    assert min(slopes) - 1e-12 <= slope.low <= slope.value <= slope.high <= max(slopes) + 1e-12
    agreeing = abs(_statistic(x, y))
    orders = list(itertools.permutations(range(count)))
    assert p_value == pytest.approx(np.mean([abs(_statistic(x, y[list(o)])) >= agreeing for o in orders]))


def _statistic(x, y) -> float:
    pairs = itertools.combinations(range(len(x)), 2)
    return sum(np.sign(x[j] - x[i]) * np.sign(y[j] - y[i]) for i, j in pairs)


def test_intervals_cover_the_true_slope_at_their_rate() -> None:
    generator, x, runs = np.random.default_rng(1), np.arange(12.0), 200
    slopes = [theil_sen(x, 0.3 * x + generator.normal(size=12))[0] for _ in range(runs)]
    covered = np.mean([slope.low <= 0.3 <= slope.high for slope in slopes])
    assert covered == pytest.approx(0.95, abs=3 * np.sqrt(0.05 * 0.95 / runs))


def test_p_value_of_a_constant_and_of_many_tied_models() -> None:
    assert kendall_p_value(np.arange(5.0), np.ones(5)) == 1.0
    x, y = np.repeat(np.arange(5.0), 2), np.arange(10.0)
    assert kendall_p_value(x, y) < 0.001 < kendall_p_value(x, y[::-1] * (-1) ** np.arange(10))


def test_a_planted_slope_is_found_in_its_unit_and_claimed() -> None:
    figures = [0.9 - 0.05 * place + 0.004 * (-1) ** place for place in range(9)]
    released = [f"{2016 + place}-07" for place in range(9)]
    parameters = [10.0 ** (8 + place / 4) for place in range(9)]
    rows = models(figures, released=released, parameters=parameters)
    by_year = trend_of(rows)
    assert by_year.slope.value == pytest.approx(-0.05, abs=0.003)
    assert by_year.slope.low < -0.05 < by_year.slope.high < 0
    assert by_year.models == 9
    assert by_year.points[1] == ("m01", pytest.approx(2017.5), figures[1])
    assert by_year.claim.startswith("composite falls by 0.0")
    assert "per year" in by_year.claim
    assert trend_of(rows, against="log10 parameters").slope.value == pytest.approx(-0.2, abs=0.012)


def test_noise_is_claimed_in_no_more_than_five_tables_of_a_hundred() -> None:
    """Twelve models, two properties, four workloads: any claim in the table is false."""
    generator = np.random.default_rng(3)
    tables, claimed, unadjusted = 100, 0, 0
    for _ in range(tables):
        rows = [
            row
            for workload in "abcd"
            for row in models(
                generator.normal(size=12),
                workload=workload,
                released=[MONTHS[place] for place in generator.permutation(20)[:12]],
                parameters=10.0 ** generator.uniform(8, 11, 12),
            )
        ]
        found = trends_of(rows)
        assert len(found) == 8
        claimed += any(not trend.claim.startswith("no trend") for trend in found)
        unadjusted += any(trend.slope.low > 0 or trend.slope.high < 0 for trend in found)
    assert claimed / tables <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / tables)
    assert unadjusted / tables > 0.15


def test_one_point_a_base_and_none_of_transformed_models() -> None:
    years = [f"202{place}-01" for place in range(5)]
    rows = models([0.1, 0.2, 0.3, 0.4, 0.5], released=years)
    plain = trend_of(rows)
    tuned = bare_row(
        "m00-it",
        "prose",
        base="m00",
        scores={"composite": 9.0},
        facts={"released": "2020-06", "stage": "tuned"},
    )
    int8 = bare_row("m01", "prose", transform="int8", scores={"composite": 9.0}, facts={"released": years[1]})
    assert trend_of([tuned, int8, *rows]) == plain


def test_a_base_is_stood_for_by_its_base_stage_where_no_model_has_its_name() -> None:
    facts = [{"released": "2020-01", "stage": "tuned"}, {"released": "2021-01", "stage": "base"}]
    variants = [
        bare_row(f"x{place}", "prose", base="x", scores={"composite": float(place)}, facts=own)
        for place, own in enumerate(facts)
    ]
    other = models([0.5], released=["2023-01"])
    assert trend_of([*variants, *other]).points[1] == ("x1", 2021.0, 1.0)


def test_generations_are_of_one_family() -> None:
    facts = {"family": ["a"] * 4 + ["b"] * 4 + [None], "generation": [1, 2, 3, 4, 4, 3, 2, 1, 7]}
    rows = models([1, 2, 3, 4, 1, 2, 3, 4, 0], **facts)
    found = {trend.family: trend.slope.value for trend in trends_of(rows)}
    assert found == {"a": 1.0, "b": -1.0}


def test_few_models_have_a_slope_without_interval_and_without_claim() -> None:
    (found,) = trends_of(models([0.1, 0.2, 0.3], released=MONTHS[:3]))
    assert found.slope.low is None
    assert found.slope.no_interval == "3 models; an interval needs 4"
    assert found.p_value is None
    assert found.claim == "no trend is claimed: 3 independently trained models, an interval needs 4"
    assert trends_of(models([0.1, 0.2], released=["2020-01", "2020-01"])) == ()


def test_four_in_order_have_an_interval_but_may_be_chance() -> None:
    found = trend_of(models([0.1, 0.2, 0.3, 0.4], released=MONTHS[:4]))
    assert found.slope.low > 0
    assert found.p_value == pytest.approx(2 / 24)
    assert found.claim.startswith("no trend is claimed: among all trends of the table")


def test_savings_are_figures_too() -> None:
    rows = [
        bare_row(
            f"m{place}",
            "prose",
            speedup={"agreement=0.95 | h100": 1 / (1 - 0.1 * place)},
            facts={"released": MONTHS[place]},
        )
        for place in range(5)
    ]
    found = trend_of(rows, "saving, agreement=0.95 | h100")
    assert [point[2] for point in found.points] == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])
