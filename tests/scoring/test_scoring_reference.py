"""What a transform itself costs, on the score card."""

import numpy as np
import pytest
from scoring_traces import facts_trace

from offramp.scoring.scoring import score

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
    assert card.to_json()["reference_agreement"] == kept.to_json()


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
