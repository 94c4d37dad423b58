from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.stats import entropy
from scoring_traces import facts_trace, logits_trace, marginal_of

from offramp.errors import InputError
from offramp.scoring import components
from offramp.scoring.components import (
    VOCABULARY_COLUMNS,
    first_match,
    initial_information,
    mixture_entropy,
    saturation,
)
from offramp.scoring.documents import document_rows
from offramp.scoring.estimate import document_bootstrap
from offramp.scoring.scoring import score

X = np.array([0.25, 0.5, 1.0])


def test_representation_by_hand_and_at_its_ceiling():
    assert components.representation_quality(np.array([0.4, 0.8, 1.0]), X) == pytest.approx(0.1 + 0.4)
    assert components.representation_quality(np.ones(3), X) == pytest.approx(1 - X[0])
    assert components.representation_quality(np.array([0.0, 0.0, 1.0]), X) == 0.0


def test_increment_by_hand_caps_what_exceeds_the_initial_information():
    remaining, initial = np.array([3.0, 1.0, 0.0]), np.array(2.0)
    # Shares 1 (before), 1 (3 nats capped at 2), 0.5: area 0.25 + 0.25 + 0.25.
    assert components.information_increment(remaining, initial, X) == pytest.approx(0.25)
    np.testing.assert_allclose(components.increments(remaining, initial), [-1.0, 2.0, 1.0])
    np.testing.assert_allclose(components.remaining_share(remaining, initial), [1.0, 0.5, 0.0])
    assert components.information_increment(np.zeros(3), initial, X) == pytest.approx(1 - X[0])
    assert components.information_increment(np.full(3, 9.0), initial, X) == pytest.approx(0.0)


def test_calibration_skill_by_hand():
    # Uncertainty 0.25 + 0.16 = 0.41; Brier 0.1 + 0.105 = 0.205.
    assert components.calibration_skill(np.array([0.1, 0.105]), np.array([0.5, 0.2])) == pytest.approx(0.5)
    assert components.calibration_skill(np.array([0.3]), np.array([0.5])) == 0.0
    assert np.isnan(components.calibration_skill(np.zeros(2), np.array([0.0, 1.0])))


def test_whole_card_worked_on_paper():
    """2 documents of 2 tokens, 3 layers of 1, 1 and 2 units: x = 0.25, 0.5, 1."""
    trace = facts_trace(
        {
            "agreement": [[0, 1, 1], [1, 1, 1], [0, 0, 1], [1, 0, 1]],
            "max_prob": np.array([[0.2, 0.5, 0.9], [0.6, 0.5, 0.9], [0.2, 0.5, 0.9], [0.6, 0.5, 0.9]]),
            "kl_to_final": np.log(2) * np.array([[2.0, 1, 0], [2, 0, 0], [2, 1, 0], [2, 0, 0]]),
            "hidden_cosine_to_previous": np.array([[0.5, 1.0, 0.9]] * 4),
        },
        document=[0, 0, 1, 1],
        next_token=[1, 1, 1, 2],
        sizes=(1, 1, 2),
    )
    card = score(trace)
    # A = 0.5, 0.5: area 0.5 x 0.25 + 0.5 x 0.5.
    assert card.representation.value == pytest.approx(0.375)
    # R_0 = ln 2 (half of the tokens certain of one word, half of another). Shares 1, 1, 0.5.
    assert card.initial_information.value == pytest.approx(np.log(2))
    assert card.increment.value == pytest.approx(1 - (0.25 + 0.25 + 0.25))
    np.testing.assert_allclose(
        card.curves.values["increment"], np.log(2) * np.array([-1.0, 1.5, 0.5]), atol=1e-6
    )
    # Exit 1: each fold learns 0.2 -> 0, 0.6 -> 1, so Brier 0. Exit 2: one document always agrees, the other
    # never, so each fold predicts the wrong constant: Brier 1. Skill max(0, 1 - 1 / 0.5) = 0.
    np.testing.assert_allclose(card.curves.values["recalibrated_brier"], [0.0, 1.0, 0.0])
    assert card.calibration.value == 0.0
    assert card.composite.value == 0.0
    # Against the observed token (1, 1, 1, 2): exit 1 says 2, 1, 2, 1: correct 0, 1, 0, 0. Bin of 0.2: gap
    # 0.2; bin of 0.6: gap |0.6 - 0.5|: ECE 0.15. Exit 2 says 1, 1, 2, 2: correct 1, 1, 0, 1: ECE 0.25.
    np.testing.assert_allclose(card.curves.values["ece_token"][:2], [0.15, 0.25], atol=1e-6)
    assert card.literal_calibration.value == pytest.approx(1 - 0.2)
    # First match: exits 2, 1, 3, 1 of 3; saturation: 2, 1, 3, 3.
    assert card.first_match_skip.value == pytest.approx((1 / 3 + 2 / 3 + 0 + 2 / 3) / 4)
    assert card.saturation_skip.value == pytest.approx((1 / 3 + 2 / 3 + 0 + 0) / 4)
    # The head is 3 of 3 + 4 units.
    assert card.head_share == pytest.approx(3 / 7)
    assert card.time_ceiling_saturation.value == pytest.approx(0.25 * 4 / 7)
    assert card.time_ceiling_first_match.value == pytest.approx(card.first_match_skip.value * 4 / 7)
    assert card.ceiling == 0.75
    assert card.candidates["block_influence"] == pytest.approx((0.5 + 0.0 + 0.1) / 3)
    assert card.candidates["mean_kl"] == pytest.approx(np.log(2) * (2 + 0.5) / 2)
    assert card.candidates["saturation_skip"] == card.saturation_skip.value


def random_trace(documents=24, length=6, vocabulary=30, exits=3):
    generator = np.random.default_rng(1)
    document = np.repeat(np.arange(documents), length)
    return logits_trace(3 * generator.normal(size=(len(document), exits, vocabulary)), document=document)


def test_draws_equal_a_plain_loop_up_to_their_shift():
    trace = random_trace()
    rows = document_rows(trace)
    bootstrap = document_bootstrap(24, draws=50, seed=3)
    entropy_sums = rows.sums(trace.entropy)[:, -1]
    values = initial_information(trace.marginal, entropy_sums, rows, bootstrap)
    marginal = trace.marginal
    expected = []
    for weights in bootstrap.weights[1:]:
        mixture, total, entropies = np.zeros(30), 0.0, 0.0
        for place, weight in enumerate(weights):
            block = marginal.block_of_document[rows.index[place]]
            mixture += weight * rows.tokens[place] * marginal.sums[block] / marginal.tokens[block]
            total += weight * rows.tokens[place]
            entropies += weight * entropy_sums[place]
        expected.append(entropy(mixture) - entropies / total)
    shift = values[0] - np.mean(expected)
    np.testing.assert_allclose(values[1:], np.array(expected) + shift, atol=1e-4)
    assert shift > 0.0


def test_mixture_entropy_over_a_vocabulary_of_several_chunks():
    sums = np.random.default_rng(0).random((3, 2 * VOCABULARY_COLUMNS + 5)) ** 6
    sums[:, :9] = 0.0
    weights = np.array([[1.0, 1, 1], [0, 2, 1]])
    np.testing.assert_allclose(
        mixture_entropy(sums, weights), [entropy(row @ sums) for row in weights], rtol=1e-5
    )


def test_too_little_information_is_undefined_with_the_reason():
    document = np.repeat([0, 1], 10)
    marginal = marginal_of(np.full((20, 4), 0.25), document)
    trace = facts_trace(
        {"entropy": np.full((20, 3), np.log(4)), "max_prob": np.full((20, 3), 0.25)},
        document=document,
        marginal=marginal,
    )
    card = score(trace)
    assert card.initial_information.value == pytest.approx(0.0, abs=1e-6)
    assert card.increment.value is None
    assert "R_0" in card.increment.undefined
    assert card.composite.value is None
    assert "increment" in card.composite.undefined
    assert card.candidates["increment"] is None


def test_a_subset_weighs_the_blocks_by_its_own_tokens():
    trace = random_trace()
    half = trace.subset(np.arange(0, 24, 2))
    card = score(half)
    rows = document_rows(half)
    weights = np.bincount(trace.marginal.block_of_document[rows.index], weights=rows.tokens, minlength=16)
    mixture = weights / trace.marginal.tokens @ trace.marginal.sums
    expected = entropy(mixture) - half.entropy[:, -1].mean()
    assert card.initial_information.value == pytest.approx(expected, abs=1e-6)
    assert card.documents == 12


def test_a_marginal_that_does_not_fit_is_refused():
    trace = random_trace()
    trace.marginal.tokens[3] = 0
    with pytest.raises(InputError, match="marginal lacks documents"):
        score(trace)
    trace = random_trace()
    trace.marginal.sums[0, 0] = np.nan
    with pytest.raises(InputError, match="marginal distribution is not finite"):
        score(trace)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 6).flatmap(lambda exits: arrays(bool, st.tuples(st.integers(1, 8), st.just(exits)))))
def test_equal_a_plain_loop(agreement):
    agreement[:, -1] = True
    for row, first, settled in zip(agreement, first_match(agreement), saturation(agreement), strict=True):
        assert first == next(i for i, agrees in enumerate(row) if agrees)
        assert settled == next(i for i in range(len(row)) if all(row[i:]))
        assert first <= settled
