"""Scores beside measured savings: against scipy, coverage of intervals, and when there is none."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from comparison_traces import bare_row, floor, with_card
from scipy import stats

from offramp.scoring.estimate import Estimate
from offramp.studies.comparison.results import Row, ScoreValidity
from offramp.studies.comparison.savings import validity_of

PLACE = floor(0.95)
NAMES = ("saturation_skip", "composite")


def study(
    seed: int,
    *,
    bases: int,
    cells: int = 1,
    relation: float = 0.0,
    noise: float = 0.3,
    workloads: str = "ab",
    names: tuple[str, ...] = NAMES,
) -> list[Row]:
    """Models whose savings follow their quality; scores follow it as much as `relation` says."""
    generator = np.random.default_rng(seed)
    rows = []
    for base in range(bases):
        quality, other = generator.normal(size=2)
        for cell in range(cells):
            for workload in workloads:
                drawn = noise * generator.normal(size=len(names) + 1)
                scored = relation * quality + (1 - relation) * other + drawn[:-1]
                saving = 0.1 + 0.02 * (quality + drawn[-1])
                candidates = {name: float(value) for name, value in zip(names, scored, strict=True)}
                rows.append(
                    bare_row(
                        f"m{base:02}.{cell}",
                        workload,
                        base=f"m{base:02}",
                        candidates=candidates,
                        measured={PLACE: 1 / (1 - saving)},
                    )
                )
    return rows


def entry_of(rows: list[Row], score: str = NAMES[0]) -> ScoreValidity:
    (found,) = (one for one in validity_of(rows) if one.score == score)
    return found


def test_a_planted_relation_over_fourteen_models_is_surely_above_chance() -> None:
    found = validity_of(study(0, bases=14, relation=1.0))
    assert [one.score for one in found] == sorted(NAMES)
    for one in found:
        assert ((one.floor, one.machine), one.bases) == (PLACE, 14)
        assert 0 < one.kendall.low < one.kendall.value < one.kendall.high


def test_intervals_of_unrelated_scores_hold_zero_at_about_their_rate() -> None:
    """Percentile intervals of 13 resampled models err a little more often than in 5 of 100 cases."""
    entries = [validity_of(study(seed, bases=13, noise=1.0), draws=200)[0].kendall for seed in range(100)]
    assert np.mean([one.low <= 0 <= one.high for one in entries]) >= 0.87


@pytest.mark.parametrize("bases", [11, 1])
def test_below_twelve_models_there_is_no_interval(bases: int) -> None:
    for one in validity_of(study(0, bases=bases, cells=3, relation=1.0, noise=0.0)):
        assert one.bases == bases
        if bases > 1:
            few = "11 independently trained models; an interval needs 12"
            assert one.kendall == Estimate(1.0, no_interval=few)
        else:
            undefined = "1 independently trained model; an order needs 3"
            assert one.kendall == Estimate(None, undefined=undefined)


def test_the_figure_by_a_slow_reference() -> None:
    """The mean over ordered pairs of workloads of scipy's correlations of the base means."""
    rows = study(5, bases=12, cells=2, relation=0.6, noise=1.0, workloads="abc")
    rows = [row for row in rows if (row.model.name, row.workload) != ("m03.1", "b")]
    taus = [
        stats.kendalltau(*base_means(rows, scored, saved).T).statistic
        for scored in "abc"
        for saved in "abc"
        if scored != saved
    ]
    assert entry_of(rows).kendall.value == pytest.approx(np.mean(taus))
    assert entry_of(rows).bases == 12


def base_means(rows: list[Row], scored: str, saved: str) -> np.ndarray:
    by_cell = {(row.model.name, row.workload): row for row in rows}
    points: dict[str, list[tuple[float, float]]] = {}
    for (name, workload), row in by_cell.items():
        other = by_cell.get((name, saved))
        if workload == scored and other is not None:
            saving = 1 - 1 / other.measured_speedup[PLACE]
            points.setdefault(row.model.base, []).append((row.card.candidates[NAMES[0]], saving))
    return np.array([np.mean(own, axis=0) for own in points.values()])


def test_lower_is_better_scores_are_turned_round() -> None:
    rows = study(1, bases=13, relation=1.0)
    turned = [
        with_card(row, candidates={**row.card.candidates, "mean_kl": -row.card.candidates[NAMES[0]]})
        for row in rows
    ]
    assert entry_of(turned, "mean_kl").kendall == entry_of(turned).kendall
    assert entry_of(turned).kendall.value > 0.5


def test_one_workload_and_predicted_savings_are_no_evidence() -> None:
    """Score and saving of one workload share its noise; a prediction is no measurement."""
    rows = study(2, bases=14, relation=1.0)
    assert validity_of([row for row in rows if row.workload == "a"]) == ()
    predicted = [replace(row, exit_speedup=row.measured_speedup, measured_speedup={}) for row in rows]
    assert validity_of(predicted) == ()


def test_savings_that_are_all_equal_rank_nothing() -> None:
    rows = [replace(row, measured_speedup={PLACE: 1.0}) for row in study(0, bases=13)]
    assert entry_of(rows).kendall == Estimate(None, undefined="all savings or all scores are equal")


def test_undefined_scores_leave_their_models_out() -> None:
    rows = [
        with_card(row, candidates={**row.card.candidates, "composite": None})
        if row.model.base < "m04"
        else row
        for row in study(0, bases=14, relation=1.0)
    ]
    assert entry_of(rows, "composite").bases == 10
    assert entry_of(rows, "composite").kendall.low is None
    assert entry_of(rows).bases == 14


def test_the_same_seed_gives_the_same_table_in_whatever_order_rows_come() -> None:
    rows = study(0, bases=13, relation=0.5)
    assert validity_of(rows, draws=100) == validity_of(rows[::-1], draws=100)
    assert validity_of(rows, draws=100, seed=1) != validity_of(rows, draws=100)
