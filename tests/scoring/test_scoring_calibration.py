import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scoring_traces import facts_trace
from sklearn.isotonic import IsotonicRegression

from offramp.scoring.calibration import cross_fitted_rates, isotonic_map, rank_by_confidence, squared_errors
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


def test_isotonic_map_by_hand():
    # Rates 0, 1 (two tied: 0.5), 0 -> the last two levels pool to (1 + 0) / 3.
    confidence, rate = isotonic_map(np.array([0.1, 0.2, 0.2, 0.3]), np.array([0.0, 1.0, 0.0, 0.0]))
    np.testing.assert_allclose(confidence, [0.1, 0.2, 0.3])
    np.testing.assert_allclose(rate, [0.0, 1 / 3, 1 / 3])


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
