"""What a transform itself costs, on the score card."""

from __future__ import annotations

import numpy as np
import pytest
from scoring_traces import facts_trace

from offramp.errors import InputError
from offramp.scoring.components import adaptability, layer_weights
from offramp.scoring.scoring import score


def trace_with(**facts):
    given = {"max_prob": np.zeros((4, 3)), **{name: np.array([row] * 4) for name, row in facts.items()}}
    return facts_trace(given, document=[0, 0, 1, 1], exits=[1, 3, 4])


def test_by_hand():
    trace = trace_with(logit_cosine=[0.49, 0.64, 1.0], shuffled_logit_cosine=[0.25, 0.0, 0.0])
    # Weights 3/4 and 1/4 (exits 1 and 3 of 4 layers).
    variant = score(trace).eas("logit", 0.5)
    assert variant.score.value == pytest.approx((0.7 * 0.75**0.5 + 0.8 * 0.5) / 2)
    assert variant.ceiling == pytest.approx((0.75**0.5 + 0.5) / 2)
    assert variant.floor == pytest.approx(0.5 * 0.75**0.5 / 2)
    assert score(trace).eas("logit", 1.0).score.value == pytest.approx((0.49 + 0.64) / 2)


def test_each_similarity_reads_its_own_fact():
    trace = trace_with(
        logit_cosine=[0.1, 0.1, 1], centred_logit_cosine=[0.2, 0.2, 1], hidden_cosine_to_final=[0.3, 0.3, 1]
    )
    card = score(trace)
    found = [card.eas(similarity, 1.0).score.value for similarity in ("logit", "centred_logit", "hidden")]
    np.testing.assert_allclose(found, [0.1, 0.2, 0.3], atol=1e-7)
    assert [variant.similarity for variant in card.eas_variants] == ["logit", "centred_logit", "hidden"]
    assert {variant.alpha for variant in card.eas_variants} == {0.5}
    assert card.candidates["eas_hidden"] == card.eas("hidden").score.value


def test_the_similarity_is_averaged_before_it_is_clipped():
    similarity = np.array([[-0.8, 0.0], [0.8, 0.0], [-0.4, 0.0], [0.8, 0.0]])
    trace = facts_trace({"logit_cosine": similarity}, document=[0, 0, 1, 1])
    # Mean 0.1; clipping each token first would give 0.4.
    assert score(trace).eas("logit", 1.0).score.value == pytest.approx(0.1)
    negative = facts_trace({"logit_cosine": -np.ones((4, 2))}, document=[0, 0, 1, 1])
    assert score(negative).eas("logit", 0.5).score.value == 0.0


def test_the_ceiling_is_about_two_thirds():
    weights = layer_weights(np.arange(1, 33), 32)[:-1]
    assert adaptability(np.ones(31), weights, 0.5) == pytest.approx(0.67, abs=0.01)


@pytest.mark.parametrize("alpha", [0.0, -0.1, 1.1, float("nan")])
def test_alpha_outside_its_range_is_refused(alpha):
    with pytest.raises(InputError, match="alpha"):
        score(trace_with()).eas("logit", alpha)


def test_an_unknown_similarity_gets_near_matches():
    with pytest.raises(InputError, match="unknown similarity 'centered_logit'") as caught:
        score(trace_with()).eas("centered_logit", 0.5)
    assert "centred_logit" in caught.value.fix


LENGTHS = np.arange(25) % 7 + 2
DOCUMENT = np.repeat(np.arange(25), LENGTHS)


def transformed_trace():
    generator = np.random.default_rng(3)
    trace = facts_trace({"agreement": generator.random((len(DOCUMENT), 4)) < 0.6}, document=DOCUMENT)
    top1 = trace.fact("top1")
    trace.reference_top1 = np.where(generator.random(len(DOCUMENT)) < 0.8, top1[:, -1], 7).astype(np.int32)
    return trace


def test_the_card_says_how_often_the_full_models_agree():
    trace = transformed_trace()
    card = score(trace, draws=200)
    equal = trace.fact("top1") == trace.reference_top1[:, None]
    kept = card.reference_agreement
    assert kept.value == pytest.approx(equal[:, -1].mean())
    assert kept.low < kept.value < kept.high
    np.testing.assert_allclose(card.curves.values["reference_agreement"], equal.mean(0))
    assert set(card.curves.intervals) >= {"agreement", "reference_agreement"}
    assert card.to_json()["reference_agreement"] == vars(kept)


def test_few_documents_give_no_interval():
    few = transformed_trace().subset(np.arange(5))
    kept = score(few).reference_agreement
    assert kept.low is None
    assert kept.no_interval == "5 documents; an interval needs 20"


def test_without_a_transform_nothing_is_said():
    trace = transformed_trace()
    trace.reference_top1 = None
    card = score(trace, draws=200)
    assert card.reference_agreement is None
    assert card.to_json()["reference_agreement"] is None
    assert "reference_agreement" not in card.curves.values
