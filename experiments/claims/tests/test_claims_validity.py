"""Validity: against scipy, planted relations are found, noise and variants of one base claim nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from claims_tables import Line, tables_of
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

import validity as module
from common import ORACLE, fit_line
from validity import kendall, kendall_permuted, spearman, validity

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
    basis: str = "predicted",
) -> list[Line]:
    """Models whose savings follow their quality; scores follow it as much as `relation` says.

    within: how much both follow what sets the cells of one base apart, which cancels over the base.
    """
    generator = np.random.default_rng(seed)
    lines = []
    for base in range(bases):
        quality, other = generator.normal(size=2)
        apart = generator.normal(size=cells)
        apart = within * (apart - apart.mean())
        for cell in range(cells):
            for workload in workloads:
                drawn = noise * generator.normal(size=len(names) + 1)
                scored = relation * quality + (1 - relation) * other + apart[cell] + drawn[:-1]
                scores = {name: float(value) for name, value in zip(names, scored, strict=True)}
                saved = {basis: 0.1 + 0.02 * float(quality + apart[cell] + drawn[-1])}
                lines.append(Line(f"m{base:02}.{cell}", workload, f"m{base:02}", "", "", scores, saved))
    return lines


def table_of(lines: list[Line], **options: int) -> pd.DataFrame:
    """By score; of those that the lines have."""
    table = validity(*tables_of(lines), **options)
    return table[table["score"].isin(lines[0].scores)].set_index("score")


def test_a_planted_relation_over_fourteen_models_is_claimed() -> None:
    table = table_of(study(0, bases=14, relation=1.0))
    assert (table[["bases", "cells"]] == 14).all(axis=None)
    assert (table["claimed"] == "yes").all()
    assert (table["kendall_low"] > 0).all()
    assert ((table["kendall_low"] < table["kendall"]) & (table["kendall"] < table["kendall_high"])).all()
    assert (table["p_value_after_holm"] <= 0.01).all()
    assert (table["error_share_of_time"] < table["null_error_share_of_time"]).all()
    assert np.isnan(table.loc[ORACLE, "less_than_oracle"])
    assert (
        table.loc["composite", "less_than_oracle_low"] < 0 < table.loc["composite", "less_than_oracle_high"]
    )


def test_planted_relations_are_found_nearly_always() -> None:
    found = [table_of(study(seed, bases=14, relation=1.0), **FEW)["claimed"].iloc[0] for seed in range(20)]
    assert found.count("yes") >= 19


def test_noise_is_claimed_in_no_more_than_five_tables_of_a_hundred() -> None:
    """Six scores of thirteen models that have nothing to do with what was saved: any claim is false."""
    names = (ORACLE, "composite", "increment", "calibration", "eas_logit", "eas_hidden")
    tables, claimed, unadjusted = 40, 0, 0
    for seed in range(tables):
        table = table_of(study(seed, bases=13, names=names, noise=1.0), **FEW)
        claimed += (table["claimed"] == "yes").any()
        unadjusted += (table["p_value"] <= 0.05).any()
    assert claimed / tables <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / tables)
    assert unadjusted / tables > claimed / tables + 0.05


def test_cells_that_move_together_within_their_base_alone_claim_nothing() -> None:
    """Five variants of each base, whose score and saving move together; the bases do not."""
    claimed, taus = [], []
    for seed in range(10):
        lines = study(seed, bases=13, cells=5, within=3.0)
        one = table_of(lines, **FEW).loc[ORACLE]
        claimed.append(one["claimed"] == "yes")
        taus.append(one["kendall"])
        assert one["within_base_kendall"] > 0.8
        assert (one["bases"], one["cells"]) == (13, 65)
    assert np.mean(claimed) <= 0.1
    assert abs(np.mean(taus)) < 0.15
    alone = [replace(line, base=line.model) for line in lines]  # as if each cell were a model of its own
    assert table_of(alone, **FEW).loc[ORACLE, "claimed"] == "yes"


def test_figures_by_a_slow_reference() -> None:
    """Means over ordered pairs of texts of scipy's correlations of the base means."""
    lines = study(5, bases=12, cells=2, relation=0.6, noise=1.0, workloads="abc")
    lines = [line for line in lines if (line.model, line.workload) != ("m03.1", "b")]
    taus, rhos, errors, null_errors = [], [], [], []
    for scored, saved in ((one, other) for one in "abc" for other in "abc" if one != other):
        points: dict[str, list[tuple[float, float]]] = {}
        savings = {line.model: line.saved["predicted"] for line in lines if line.workload == saved}
        for line in lines:
            if line.workload == scored and line.model in savings:
                points.setdefault(line.base, []).append((line.scores[ORACLE], savings[line.model]))
        means = np.array([np.mean(own, axis=0) for own in points.values()])
        taus.append(stats.kendalltau(*means.T).statistic)
        rhos.append(stats.spearmanr(*means.T).statistic)
        for place, (score, saving) in enumerate(means):
            rest = np.delete(means, place, axis=0)
            slope, intercept = fit_line(*rest.T)
            errors.append(abs(intercept + slope * score - saving))
            null_errors.append(abs(np.median(rest[:, 1]) - saving))
    one = table_of(lines).loc[ORACLE]
    assert one["kendall"] == pytest.approx(np.mean(taus))
    assert one["spearman"] == pytest.approx(np.mean(rhos))
    assert one["error_share_of_time"] == pytest.approx(np.median(errors))
    assert one["null_error_share_of_time"] == pytest.approx(np.median(null_errors))
    assert (one["bases"], one["cells"]) == (12, 23)


@given(st.integers(0, 2**32 - 1))
def test_correlations_are_scipys_for_every_draw_and_every_order(seed: int) -> None:
    generator = np.random.default_rng(seed)
    score, saving = generator.integers(0, 4, size=(2, 7)).astype(float)
    weights = generator.multinomial(7, np.full(7, 1 / 7), size=3).astype(float)
    order = generator.permutation(7)
    score[generator.integers(7)] = np.nan
    known = np.isfinite(score)
    for drawn, tau, rho in zip(
        weights,
        kendall(score[None], saving, weights)[:, 0],
        spearman(score[None], saving, weights)[:, 0],
        strict=True,
    ):
        points = np.repeat(np.arange(7)[known], drawn[known].astype(int))
        varied = len(set(score[points])) > 1 and len(set(saving[points])) > 1
        assert np.isnan(tau) == np.isnan(rho) == (not varied)
        if varied:
            assert tau == pytest.approx(stats.kendalltau(score[points], saving[points]).statistic)
            assert rho == pytest.approx(stats.spearmanr(score[points], saving[points]).statistic)
    moved = kendall(score[None], saving[order], np.ones((1, 7)))
    assert np.array_equal(kendall_permuted(score[None], saving[order][None]), moved, equal_nan=True)


def test_p_values_count_the_orders_that_reach_what_was_found_ties_included() -> None:
    """Four bases have 24 orders: the share of those is known, and permutations come near it."""
    lines = [
        Line(f"m{place}", workload, scores={ORACLE: float(place)}, saved={"predicted": float(saved)})
        for place, saved in enumerate((0, 1, 3, 2))
        for workload in "ab"
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BASES_NEEDED", 4)
        one = table_of(lines).loc[ORACLE]
    assert one["kendall"] == pytest.approx(4 / 6)
    assert one["p_value"] == pytest.approx(4 / 24, abs=3 * np.sqrt(4 / 24 * 20 / 24 / 4999))


def test_permutations_in_parts_are_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = study(4, bases=12, relation=0.4)
    whole = table_of(lines, permutations=999)
    monkeypatch.setattr(module, "AT_ONCE", 144 * 100)
    pd.testing.assert_frame_equal(table_of(lines, permutations=999), whole)


@pytest.mark.parametrize("bases", [11, 1])
def test_below_twelve_models_nothing_is_claimed(bases: int) -> None:
    table = table_of(study(0, bases=bases, cells=3, relation=1.0, noise=0.0))
    assert (table["claimed"] == "too few models").all()
    assert table[["p_value", "kendall_low"]].isna().all(axis=None)
    assert (table["kendall"].isna() if bases == 1 else table["kendall"] == 1.0).all()


def test_lower_is_better_scores_are_turned_round() -> None:
    lines = [
        replace(line, scores={**line.scores, "mean_kl": -line.scores[ORACLE]})
        for line in study(1, bases=13, relation=1.0)
    ]
    table = table_of(lines)
    for column in ("kendall", "error_share_of_time", "within_base_kendall"):
        assert table.loc["mean_kl", column] == pytest.approx(table.loc[ORACLE, column], nan_ok=True)


def test_one_text_is_no_evidence_and_equal_savings_rank_nothing() -> None:
    lines = study(2, bases=14, relation=1.0)
    assert validity(*tables_of([line for line in lines if line.workload == "a"])).empty
    equal = table_of([replace(line, saved={"measured": 0.1}) for line in lines])
    assert (equal["basis"] == "measured").all()
    assert equal[["kendall", "p_value"]].isna().all(axis=None)
    assert (equal["claimed"] == "no").all()


def test_undefined_scores_leave_their_models_out() -> None:
    lines = [
        replace(line, scores={**line.scores, "composite": np.nan}) if line.base < "m04" else line
        for line in study(0, bases=14, relation=1.0)
    ]
    table = table_of(lines)
    assert table["bases"].to_dict() == {ORACLE: 14, "composite": 10}
    assert table["claimed"].to_dict() == {ORACLE: "yes", "composite": "too few models"}
