"""Passages by hand."""

import numpy as np
import pytest
from report_examples import model_shape

from offramp.errors import InputError
from offramp.studies.work.trace import passage_from_trace, typical_document
from offramp.tracing.trace import Trace


def small_trace(top1, document=None, exits=None, layers=None) -> Trace:
    top1 = np.array(top1, dtype=np.int32)
    document = np.zeros(len(top1), dtype=np.int32) if document is None else np.array(document, dtype=np.int32)
    max_prob = np.linspace(0.1, 0.9, top1.size, dtype=np.float32).reshape(top1.shape)
    exits = None if exits is None else np.array(exits)
    shape = model_shape(layers or top1.shape[1])
    return Trace.from_facts({"top1": top1, "max_prob": max_prob}, document=document, shape=shape, exits=exits)


def test_passage_by_hand():
    # Layers 2, 4, 6 are traced. Token 0 agrees at 2, not at 4, again at 6; token 1 from 4 on.
    trace = small_trace([[7, 1, 7], [1, 8, 8]], exits=[2, 4, 6], layers=6)
    passage = passage_from_trace(trace, lambda token: f"<{token}>", 0)
    assert passage.exits == (2, 4, 6)
    assert [token.first_match_exit for token in passage.tokens] == [2, 4]
    assert [token.saturation_exit for token in passage.tokens] == [6, 4]
    assert passage.tokens[0].predictions == ("<7>", "<1>", "<7>")
    assert passage.tokens[0].agrees == (True, False, True)
    assert passage.tokens[1].full_prediction == "<8>"
    assert passage.tokens[1].max_prob == pytest.approx((0.58, 0.74, 0.9))


def test_agreement_is_by_token_not_by_text():
    trace = small_trace([[3, 4]])
    passage = passage_from_trace(trace, lambda token: "same", 0)
    assert passage.tokens[0].agrees == (False, True)


def test_passage_is_cut_and_says_how_long_the_document_is():
    trace = small_trace([[1, 1]] * 9, document=[0] * 2 + [1] * 7)
    passage = passage_from_trace(trace, str, 1, max_tokens=3)
    assert (len(passage.tokens), passage.document_tokens, passage.document) == (3, 7, "document 1")


def test_typical_document_is_the_median_of_the_long_ones():
    # Mean saturation layers: document 0: 1, document 1: 3, document 2: 2; document 3 is too short to count.
    rows = [[9, 9, 9]] * 4 + [[1, 1, 9]] * 4 + [[1, 9, 9]] * 4 + [[1, 9, 9]]
    trace = small_trace(rows, document=[0] * 4 + [1] * 4 + [2] * 4 + [3])
    assert typical_document(trace) == 2


def test_a_document_without_tokens_is_an_error():
    trace = small_trace([[1, 1]], document=[0])
    with pytest.raises(InputError, match="no traced tokens"):
        passage_from_trace(trace, str, 5)
    with pytest.raises(InputError, match="no tokens to show"):
        typical_document(trace.subset(np.array([], dtype=np.int64)))
