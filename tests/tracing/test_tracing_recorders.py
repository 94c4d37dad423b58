"""What holds for the facts on request whatever the logits: order of equals, bounds, the naive reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_arrays
from naive_facts import signals_of_logits
from rounding import assert_within, signal_bounds
from test_tracing_properties import HUGE, MASKED, SMALL, TIES, measure, own_error, tables

from offramp.tracing.facts import SIGNAL_FACTS
from offramp.tracing.request import Recording
from offramp.tracing.statistics import Transform, best_columns

EVERYTHING = Recording(tuple(SIGNAL_FACTS))


def padded(z: np.ndarray) -> torch.Tensor:
    width = -(-z.shape[1] // 64) * 64
    return torch.nn.functional.pad(torch.tensor(z), (0, width - z.shape[1]), value=-1e30)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_the_best_columns_are_those_of_a_stable_sort(data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 1500)))
    values = st.one_of(TIES, SMALL, st.just(-np.inf))
    z = data.draw(hypothesis_arrays.arrays(np.float32, shape, elements=values, fill=TIES))
    count = data.draw(st.integers(1, min(30, shape[1])))
    cap = data.draw(st.sampled_from([0.0, 2.0]))
    columns, found = best_columns(padded(z), Transform(cap=cap), count)
    transformed = Transform(cap=cap)(torch.tensor(z)).numpy()
    expected = np.argsort(-transformed, axis=-1, kind="stable")[:, :count]
    assert np.array_equal(columns.numpy(), expected)
    assert np.array_equal(found.numpy(), np.take_along_axis(transformed, expected, -1))


def check_bounds(facts: dict[str, np.ndarray]) -> None:
    assert np.all(facts["logit_gap"] >= 0)
    assert np.all(np.isposinf(facts["kl_to_previous"][:, 0]))
    assert np.all(facts["kl_to_previous"] >= 0)
    assert np.all((facts["js_to_previous"] >= 0) & (facts["js_to_previous"] <= np.float32(np.log(2))))
    assert np.all((facts["top_k_overlap"] >= 0) & (facts["top_k_overlap"] <= 1))
    assert np.all((facts["restricted_margin"] >= 0) & (facts["restricted_max_prob"] <= 1))
    assert np.all(facts["restricted_margin"] <= facts["restricted_max_prob"])


def compare(facts: dict[str, np.ndarray], z: np.ndarray) -> None:
    z = z.astype(np.float64)
    everything = list(range(z.shape[-1]))
    # The best columns of equal logits are those of a stable sort, without any doubt.
    bounds = {**signal_bounds(z, own_error(z), everything), "top_k_overlap": 0.0}
    for name, column in signals_of_logits(z, everything).items():
        if facts[name].dtype == np.int32:
            np.testing.assert_array_equal(facts[name], column, err_msg=name)
        else:
            assert_within(facts[name], column, bounds[name], name)


@pytest.mark.parametrize("head", ["linear", "readout"])
@settings(max_examples=50, deadline=None)
@given(data=st.data())
def test_any_small_logits(head: str, data: st.DataObject) -> None:
    z = data.draw(tables(st.one_of(TIES, SMALL)))
    facts = measure(z, head=head, recording=EVERYTHING)
    check_bounds(facts)
    compare(facts, z)
    assert np.array_equal(facts["restricted_top1"], facts["top1"]), "the short list is the whole vocabulary"


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_huge_logits_give_no_overflow(data: st.DataObject) -> None:
    facts = measure(data.draw(tables(HUGE)), head="linear", recording=EVERYTHING)
    check_bounds(facts)
    assert not any(np.isnan(column).any() for column in facts.values())


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_masked_tokens_take_no_part(data: st.DataObject) -> None:
    z = data.draw(tables(SMALL))
    masked = data.draw(hypothesis_arrays.arrays(np.bool_, z.shape[-1]))
    masked[data.draw(st.integers(0, z.shape[-1] - 1))] = False
    masked[0] = False  # the observed token of the measured rows
    facts = measure(np.where(masked, np.float32(MASKED), z), head="readout", recording=EVERYTHING)
    check_bounds(facts)
    compare(facts, np.where(masked, -np.inf, z))


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_an_exit_like_the_one_before_has_settled(data: st.DataObject) -> None:
    z = data.draw(tables(SMALL))
    facts = measure(np.repeat(z[:1], 2, axis=0), head="linear", recording=EVERYTHING)
    compare(facts, np.repeat(z[:1], 2, axis=0))
    assert np.all(facts["top_k_overlap"][:, 1] == 1)
