"""Predictive validity: planted relations are found, noise and variants of one base claim nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from comparison_traces import bare_row
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from offramp.scoring.estimate import Estimate
from offramp.scoring.rank_correlation import left_out_lines
from offramp.studies.comparison import validity
from offramp.studies.comparison.results import Row, ScoreValidity
from offramp.studies.comparison.validity import ORACLE, claim, validity_of
from offramp.tuning.from_scores import fit_line

PLACE = "agreement=0.95 | h100"
NOTHING = "claims nothing: "
FEW = {"draws": 100, "permutations": 399}
"""Enough for simulations."""


def study(
    seed: int,
    *,
    bases: int,
    cells: int = 1,
    relation: float = 0.0,
    within: float = 0.0,
    noise: float = 0.3,
    workloads: str = "ab",
    names: tuple[str, ...] = (ORACLE, "composite"),
    basis: str = "speedup",
) -> list[Row]:
    """Models whose savings follow their quality; scores follow it as much as `relation` says.

    within: how much both follow what sets the cells of one base apart, which cancels over the base.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for base in range(bases):
        quality, other = generator.normal(size=2)
        apart = generator.normal(size=cells)
        apart = within * (apart - apart.mean())
        for cell in range(cells):
            for workload in workloads:
                drawn = noise * generator.normal(size=len(names) + 1)
                scored = relation * quality + (1 - relation) * other + apart[cell] + drawn[:-1]
                saving = 0.1 + 0.02 * (quality + apart[cell] + drawn[-1])
                candidates = {name: float(value) for name, value in zip(names, scored, strict=True)}
                rows.append(
                    bare_row(
                        f"m{base:02}.{cell}",
                        workload,
                        base=f"m{base:02}",
                        candidates=candidates,
                        **{basis: {PLACE: 1 / (1 - saving)}},
                    )
                )
    return rows


def entry_of(rows: list[Row], score: str = ORACLE, **options) -> ScoreValidity:
    (found,) = (one for one in validity_of(rows, **options) if one.score == score)
    return found


def test_a_planted_relation_over_fourteen_models_is_claimed() -> None:
    found = validity_of(study(0, bases=14, relation=1.0))
    assert [one.score for one in found] == [ORACLE, "composite"]
    for one in found:
        assert (one.basis, one.floor, one.machine) == ("predicted", "agreement=0.95", "h100")
        assert (one.bases, one.cells) == (14, 14)
        assert 0 < one.kendall.low < one.kendall.value < one.kendall.high
        assert one.spearman.value > one.kendall.value
        assert one.adjusted <= 0.01
        assert one.error < one.null_error
        assert one.claim.startswith("ranks models by what is saved on another workload: Kendall 0.")
        assert "14 independently trained models" in one.claim
    assert found[0].claim.endswith("the saturation oracle is the one to beat")
    assert found[0].less_than_oracle.undefined == "it is the oracle"
    assert found[1].less_than_oracle.low < 0 < found[1].less_than_oracle.high
    assert found[1].claim.endswith("not surely better than the saturation oracle")


def test_planted_relations_are_found_nearly_always() -> None:
    claims = [
        validity_of(study(seed, bases=14, relation=1.0), **FEW)[0].claim.startswith("ranks")
        for seed in range(25)
    ]
    assert np.mean(claims) >= 0.95


def test_noise_is_claimed_in_no_more_than_five_tables_of_a_hundred() -> None:
    """Six scores of thirteen models that have nothing to do with what was saved: any claim is false."""
    names = (ORACLE, "a", "b", "c", "d", "e")
    tables, claimed, unadjusted = 150, 0, 0
    for seed in range(tables):
        found = validity_of(study(seed, bases=13, names=names, noise=1.0), **FEW)
        claimed += any(one.claim.startswith("ranks") for one in found)
        unadjusted += any(one.p_value <= 0.05 for one in found)
    assert claimed / tables <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / tables)
    assert unadjusted / tables > claimed / tables + 0.05


def test_cells_that_move_together_within_their_base_alone_claim_nothing() -> None:
    """Five variants of each base, whose score and saving move together; the bases do not."""
    claimed, taus = [], []
    for seed in range(20):
        rows = study(seed, bases=13, cells=5, within=3.0)
        one = validity_of(rows, **FEW)[0]
        claimed.append(one.claim.startswith("ranks"))
        taus.append(one.kendall.value)
        assert one.within_base > 0.8
        assert (one.bases, one.cells) == (13, 65)
    assert np.mean(claimed) <= 0.1
    assert abs(np.mean(taus)) < 0.1
    # As if each cell were a model of its own:
    alone = [replace(row, model=replace(row.model, base=row.model.name)) for row in rows]
    assert validity_of(alone, **FEW)[0].claim.startswith("ranks")


@pytest.mark.parametrize(("bases", "noun"), [(11, "models"), (1, "model")])
def test_below_twelve_models_nothing_is_claimed(bases: int, noun: str) -> None:
    for one in validity_of(study(0, bases=bases, cells=3, relation=1.0, noise=0.0)):
        assert one.claim == f"{NOTHING}{bases} independently trained {noun}, 12 needed"
        assert one.p_value is None
        assert one.kendall.low is None
        if bases > 1:
            assert one.kendall.value == 1.0
            assert one.kendall.no_interval == "11 independently trained models; an interval needs 12"
        else:
            assert one.kendall.undefined == "1 independently trained model; an order needs 3"
            assert one.error is None


def test_figures_by_a_slow_reference() -> None:
    """Means over ordered pairs of workloads of scipy's correlations of the base means."""
    rows = study(5, bases=12, cells=2, relation=0.6, noise=1.0, workloads="abc")
    rows = [row for row in rows if (row.model.name, row.workload) != ("m03.1", "b")]
    taus, rhos, errors, null_errors = [], [], [], []
    for scored in "abc":
        for saved in "abc":
            if scored == saved:
                continue
            points = base_means(rows, scored, saved)
            taus.append(stats.kendalltau(*points.T).statistic)
            rhos.append(stats.spearmanr(*points.T).statistic)
            for place in range(len(points)):
                rest = np.delete(points, place, axis=0)
                miss = fit_line(*rest.T).at(points[place, 0]) - points[place, 1]
                errors.append(abs(miss))
                null_errors.append(abs(np.median(rest[:, 1]) - points[place, 1]))
    one = entry_of(rows)
    assert one.kendall.value == pytest.approx(np.mean(taus))
    assert one.spearman.value == pytest.approx(np.mean(rhos))
    assert one.error == pytest.approx(np.median(errors))
    assert one.null_error == pytest.approx(np.median(null_errors))
    assert (one.bases, one.cells) == (12, 23)


def base_means(rows: list[Row], scored: str, saved: str) -> np.ndarray:
    by_cell = {(row.model.name, row.workload): row for row in rows}
    points: dict[str, list[tuple[float, float]]] = {}
    for (name, workload), row in by_cell.items():
        other = by_cell.get((name, saved))
        if workload == scored and other is not None:
            saving = 1 - 1 / other.exit_speedup[PLACE]
            points.setdefault(row.model.base, []).append((row.candidates[ORACLE], saving))
    return np.array([np.mean(own, axis=0) for own in points.values()])


@given(st.integers(0, 2**32 - 1))
def test_lines_without_one_model_are_the_tuners_lines(seed: int) -> None:
    generator = np.random.default_rng(seed)
    count = int(generator.integers(3, 9))
    scores = generator.integers(0, 4, count).astype(float)
    savings = generator.normal(size=count).round(1)
    slopes, intercepts = left_out_lines(scores, savings)
    for place in range(count):
        line = fit_line(np.delete(scores, place), np.delete(savings, place))
        assert slopes[place] == pytest.approx(line.slope)
        assert intercepts[place] == pytest.approx(line.intercept)


def test_permutations_in_parts_are_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = study(4, bases=12, relation=0.4)
    whole = entry_of(rows, permutations=999).p_value
    monkeypatch.setattr(validity, "PAIRS_AT_ONCE", 144 * 100)
    parts = entry_of(rows, permutations=999).p_value
    assert 0.001 < whole < 0.9
    assert parts == pytest.approx(whole, abs=0.06)


def test_lower_is_better_scores_are_turned_round() -> None:
    rows = study(1, bases=13, relation=1.0, names=(ORACLE, "mean_kl"))
    turned = [replace(row, candidates={**row.candidates, "mean_kl": -row.candidates[ORACLE]}) for row in rows]
    one, oracle = entry_of(turned, "mean_kl"), entry_of(turned)
    assert one.kendall.value == oracle.kendall.value > 0.5
    assert one.error == pytest.approx(oracle.error)
    assert one.within_base == oracle.within_base


def test_same_workload_is_no_evidence() -> None:
    """Score and saving of one workload share its noise; only other workloads count, and one alone is none."""
    rows = study(2, bases=14, relation=1.0)
    assert validity_of([row for row in rows if row.workload == "a"]) == ()


def test_measured_savings_are_judged_apart() -> None:
    rows = study(3, bases=12, relation=1.0, basis="measured")
    assert {one.basis for one in validity_of(rows)} == {"measured"}
    both = study(3, bases=12, relation=1.0) + rows
    found = validity_of([replace(row, heads=row.heads or str(place // 24)) for place, row in enumerate(both)])
    assert [one.basis for one in found] == ["predicted"] * 2 + ["measured"] * 2


def test_savings_that_are_all_equal_rank_nothing() -> None:
    rows = [replace(row, exit_speedup={PLACE: 1.0}) for row in study(0, bases=13)]
    one = entry_of(rows)
    assert one.kendall == Estimate(None, undefined="all savings or all scores are equal")
    assert one.claim == f"{NOTHING}all savings or all scores are equal"
    assert one.p_value is None


def test_undefined_scores_leave_their_models_out() -> None:
    rows = study(0, bases=14, relation=1.0)
    without = [
        replace(row, candidates={**row.candidates, "composite": None}) if row.model.base < "m04" else row
        for row in rows
    ]
    fewer, all_of_them = entry_of(without, "composite"), entry_of(without)
    assert (fewer.bases, fewer.p_value) == (10, None)
    assert fewer.claim.startswith(f"{NOTHING}10 independently")
    assert all_of_them.bases == 14
    assert all_of_them.p_value < 0.01


def test_the_same_seed_gives_the_same_table() -> None:
    rows = study(0, bases=13, relation=0.5)
    assert validity_of(rows, **FEW) == validity_of(rows[::-1], **FEW)
    assert validity_of(rows, **FEW, seed=1) != validity_of(rows, **FEW)


def test_claims_say_how_a_score_stands_beside_the_oracle() -> None:
    one = entry_of(study(0, bases=14, relation=1.0), "composite")
    assert "better than" in claim(replace(one, less_than_oracle=Estimate(0.2, 0.1, 0.3)))
    assert "worse than" in claim(replace(one, less_than_oracle=Estimate(-0.2, -0.3, -0.1)))
    assert "no better than the median" in claim(replace(one, error=0.1, null_error=0.1))
    assert claim(replace(one, adjusted=0.06)).startswith(f"{NOTHING}Kendall")
