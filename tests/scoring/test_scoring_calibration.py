from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_traces import facts_trace
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_auc_score

from offramp.scoring.calibration import (
    aurc,
    auroc,
    cross_fitted_rates,
    expected_calibration_error,
    rank_by_confidence,
    reliability_diagram,
    squared_errors,
)
from offramp.scoring.documents import document_rows
from offramp.scoring.scoring import score


def reference_rates(confidence, agrees, fold):
    """Cross-fitted isotonic recalibration, by scikit-learn."""
    rates = np.empty(len(confidence))
    for held_out in (fold, ~fold):
        regression = IsotonicRegression(out_of_bounds="clip")
        regression.fit(confidence[~held_out].astype(np.float64), agrees[~held_out].astype(np.float64))
        rates[held_out] = regression.predict(confidence[held_out].astype(np.float64))
    return rates


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([2, 5, 1000]), tokens=st.integers(4, 80))
def test_cross_fit_equals_scikit_learn_with_and_without_ties(seed, levels, tokens):
    generator = np.random.default_rng(seed)
    confidence = (generator.integers(0, levels, tokens) / levels).astype(np.float32)
    agrees = generator.random(tokens) < confidence
    fold = np.arange(tokens) < tokens // 2
    ranking = rank_by_confidence(confidence, agrees)
    expected = (reference_rates(confidence, agrees, fold) - agrees) ** 2
    np.testing.assert_allclose(
        squared_errors(cross_fitted_rates(ranking, fold), ranking), expected, atol=1e-9
    )


def test_component_equals_the_reference_on_a_trace():
    generator = np.random.default_rng(4)
    document = np.repeat(np.arange(24), 30)
    confidence = generator.random((len(document), 5)).astype(np.float32)
    agreement = generator.random(confidence.shape) < confidence**2
    agreement[:, -1] = True
    trace = facts_trace({"agreement": agreement, "max_prob": confidence}, document=document)
    fold = document_rows(trace).fold_of_row()
    brier = uncertainty = 0.0
    for column in range(4):
        rates = reference_rates(confidence[:, column], agreement[:, column], fold)
        brier += np.mean((rates - agreement[:, column]) ** 2)
        uncertainty += agreement[:, column].mean() * (1 - agreement[:, column].mean())
    card = score(trace)
    assert card.calibration.value == pytest.approx(1 - brier / uncertainty, abs=1e-9)
    assert card.calibration.low < card.calibration.value < card.calibration.high


def test_folds_are_whole_documents_of_nearly_equal_number():
    document = np.repeat(np.arange(9), np.arange(1, 10))
    rows = document_rows(facts_trace({"max_prob": np.zeros((45, 2))}, document=document))
    fold = rows.fold_of_row()
    by_document = [set(fold[document == i]) for i in range(9)]
    assert all(len(values) == 1 for values in by_document)
    assert sum(values.pop() for values in by_document) == 4


def test_a_perfect_and_a_useless_confidence():
    document = np.repeat(np.arange(20), 20)
    agreement = np.random.default_rng(0).random((400, 3)) < 0.5
    agreement[:, -1] = True
    telling = np.where(agreement, 0.8, 0.3)
    perfect = score(facts_trace({"agreement": agreement, "max_prob": telling}, document=document))
    assert perfect.calibration.value == 1.0
    flat = score(facts_trace({"agreement": agreement, "max_prob": np.full((400, 3), 0.5)}, document=document))
    assert flat.calibration.value == pytest.approx(0.0, abs=0.02)


def ranking(confidence, agrees):
    return rank_by_confidence(np.asarray(confidence, dtype=np.float32), np.asarray(agrees, dtype=bool))


def naive_aurc(confidence, agrees):
    """Mean risk over coverages; each tied token counts as the mean of its group."""
    values = sorted(set(confidence), reverse=True)
    errors = []
    for value in values:
        group = [1.0 - float(a) for c, a in zip(confidence, agrees, strict=True) if c == value]
        errors += [sum(group) / len(group)] * len(group)
    return sum(sum(errors[: k + 1]) / (k + 1) for k in range(len(errors))) / len(errors)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 10_000), levels=st.sampled_from([2, 7, 100_000]))
def test_auroc_and_aurc_equal_plain_references(seed, levels):
    generator = np.random.default_rng(seed)
    confidence = (generator.integers(0, levels, 150) / levels).astype(np.float32)
    agrees = generator.random(150) < 0.3 + 0.4 * confidence
    expected = roc_auc_score(agrees, confidence)
    assert auroc(ranking(confidence, agrees)) == pytest.approx(expected, abs=1e-12)
    assert aurc(ranking(confidence, agrees)) == pytest.approx(naive_aurc(confidence, agrees), abs=1e-12)


def test_aurc_of_ties_is_the_mean_over_their_orders():
    # 0.9 right; 0.5 tied: one right, one wrong. Orders: (0, 0, 1/3) and (0, 1/2, 1/3).
    assert aurc(ranking([0.9, 0.5, 0.5], [1, 1, 0])) == pytest.approx((0 + 1 / 4 + 1 / 3) / 3)


@pytest.mark.parametrize("minority", [0, 19, 20])
def test_auroc_needs_twenty_tokens_of_each_class(minority):
    confidence = np.linspace(0, 1, 100)
    for agrees in (np.arange(100) < minority, np.arange(100) >= minority):
        assert np.isnan(auroc(ranking(confidence, agrees))) == (minority < 20)


def test_constant_confidence_ranks_nothing():
    constant = ranking(np.full(100, 0.5), np.arange(100) < 50)
    assert np.isnan(auroc(constant))
    assert np.isnan(aurc(constant))


def test_diagram_by_hand_with_both_ends_and_empty_bins():
    confidence = np.array([0.0, 1.0, 1.0, 0.5], dtype=np.float32)
    diagram = reliability_diagram(7, confidence, np.array([True, True, False, True]))
    assert diagram.exit == 7
    assert diagram.count.tolist() == [1] + [0] * 6 + [1] + [0] * 6 + [2]
    assert diagram.agreement[[0, 7, 14]].tolist() == [1.0, 1.0, 0.5]
    assert np.isnan(diagram.confidence[1])
    # Gaps 1, 0.5 and 0.5 with weights 1/4, 1/4, 2/4.
    assert expected_calibration_error(diagram) == pytest.approx(0.25 + 0.125 + 0.25)


def test_a_probability_rounded_above_one_stays_in_the_last_bin():
    diagram = reliability_diagram(1, np.array([1.0000001], dtype=np.float32), np.array([True]))
    assert diagram.count[-1] == 1
