import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from offramp.scoring.calibration import aurc, auroc, rank_by_confidence


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


def test_aurc_by_hand():
    # Most confident first: right, wrong, right: risks 0, 1/2, 1/3.
    assert aurc(ranking([0.1, 0.9, 0.5], [1, 1, 0])) == pytest.approx((0 + 1 / 2 + 1 / 3) / 3)


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
