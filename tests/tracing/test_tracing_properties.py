"""What holds for any logits: ties, masked columns, huge and constant logits, one column, padding.

Facts of every trace with and without those on request.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hypothesis_arrays
from naive_facts import facts_of_logits, signals_of_logits
from rounding import DEVIATIONS, UNIT, assert_within, fact_bounds, signal_bounds
from torch import Tensor

from offramp.heads.output_head import LinearHead, ReadoutHead, StateShape
from offramp.heads.statistics import HeadTransform, best_columns
from offramp.tracing.facts import SIGNAL_FACTS
from offramp.tracing.group_measurer import GroupMeasurer
from offramp.tracing.request import Recording
from offramp.workloads.packing import Context

MASKED = -12345.0
"""Stands for a logit of -inf in a hidden state, which must be finite itself."""

RECORDINGS = st.sampled_from([Recording(), Recording(tuple(SIGNAL_FACTS))])
"""With signals, exits are compared with the one before, and read in another order."""


@dataclass
class TableStack:
    """A stack whose hidden states are the logits themselves: [exits, rows, vocabulary], for one batch."""

    table: Tensor
    head_device = torch.device("cpu")

    def capture(self, ids: Tensor, on_layer: Any) -> None:
        for layer, states in enumerate(self.table):
            batch = states.view(*ids.shape, -1)
            on_layer(layer, batch, batch)

    def readout(self, hidden: Tensor) -> Tensor:
        return torch.where(hidden == MASKED, -torch.inf, hidden)

    def tail_forward(self, hidden: Tensor) -> Tensor:
        return hidden


def measure(
    table: np.ndarray,
    *,
    head: str,
    dtype: torch.dtype = torch.float32,
    transform: HeadTransform | None = None,
    recording: Recording = Recording(),  # noqa: B008 - frozen
) -> dict[str, np.ndarray]:
    """Facts [rows, exits] of logits [exits, rows, vocabulary] through a whole group."""
    exits, rows, vocabulary = table.shape
    stack: Any = TableStack(torch.tensor(table, dtype=dtype))
    shape = StateShape(-2, None, vocabulary)
    made: Any = (
        LinearHead(torch.eye(vocabulary, dtype=dtype), None, transform or HeadTransform(), "eager")
        if head == "linear"
        else ReadoutHead(stack, vocabulary, shape)
    )
    measurer = GroupMeasurer(stack, made, range(1, exits + 1), shape, dtype, recording)
    found = measurer.measure([Context(0, 0, (0,) * rows, 0, first_row=0)])
    assert found.nonfinite == {}
    return found.facts


def tables(values: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    shapes = st.tuples(st.integers(1, 3), st.integers(1, 4), st.integers(1, 140))
    return shapes.flatmap(
        lambda shape: hypothesis_arrays.arrays(np.float32, shape, elements=values, fill=values)
    )


TIES = st.integers(-3, 3).map(float)
SMALL = st.floats(-30, 30, width=32)
HUGE = st.one_of(st.sampled_from([-1e6, 1e6, -3e7]), st.floats(-1e5, 1e5, width=32))


def check_bounds(facts: dict[str, np.ndarray], vocabulary: int, largest: float) -> None:
    slack = 1e-6 + 1e-6 * largest
    assert np.all((facts["top1"] >= 0) & (facts["top1"] < vocabulary)), "padding leaked into top-1"
    assert np.all((facts["final_rank"] >= 0) & (facts["final_rank"] < vocabulary)), "padding has a rank"
    for name in ("max_prob", "margin"):
        assert np.all((facts[name] >= 0) & (facts[name] <= 1)), name
    assert np.all(facts["margin"] <= facts["max_prob"])
    assert np.all(facts["max_prob"] >= 1 / vocabulary - slack)
    assert np.all((facts["entropy"] >= 0) & (facts["entropy"] <= np.log(vocabulary) + slack))
    assert np.all(facts["kl_to_final"] >= 0)
    assert np.all(facts["kl_to_final"][:, -1] == 0)
    assert np.all(facts["nll"] >= -slack)
    assert np.all(facts["final_logprob"] <= slack)
    for name in ("logit_cosine", "centred_logit_cosine", "shuffled_logit_cosine"):
        assert np.all(np.abs(facts[name]) <= 1), name
    agrees = facts["top1"] == facts["top1"][:, -1:]
    assert np.array_equal(facts["final_rank"] == 0, agrees), "rank 0 and agreement are one thing"
    if "logit_gap" in facts:
        check_signal_bounds(facts)


def check_signal_bounds(facts: dict[str, np.ndarray]) -> None:
    assert np.all(facts["logit_gap"] >= 0)
    assert np.all(np.isposinf(facts["kl_to_previous"][:, 0]))
    assert np.all(facts["kl_to_previous"] >= 0)
    assert np.all((facts["js_to_previous"] >= 0) & (facts["js_to_previous"] <= np.float32(np.log(2))))
    assert np.all((facts["top_k_overlap"] >= 0) & (facts["top_k_overlap"] <= 1))
    assert np.all((facts["restricted_margin"] >= 0) & (facts["restricted_max_prob"] <= 1))
    assert np.all(facts["restricted_margin"] <= facts["restricted_max_prob"])
    assert np.array_equal(facts["restricted_top1"], facts["top1"]), "the short list is the whole vocabulary"


def compare(facts: dict[str, np.ndarray], z: np.ndarray) -> None:
    """The head's product with the identity is exact: all error is that of the facts' own sums."""
    z = z.astype(np.float64)
    expected = facts_of_logits(z, np.zeros(z.shape[1], dtype=np.int64))
    bounds = fact_bounds(z, own_error(z), expected)
    assert np.array_equal(facts["top1"], expected["top1"])
    assert np.array_equal(facts["final_rank"], expected["final_rank"])
    for name in ("max_prob", "margin", "entropy", "kl_to_final", "nll", "final_logprob"):
        assert_within(facts[name], expected[name], bounds[name], name)
    if "logit_gap" in facts:
        compare_signals(facts, z)


def compare_signals(facts: dict[str, np.ndarray], z: np.ndarray) -> None:
    everything = list(range(z.shape[-1]))
    # The best columns of equal logits are those of a stable sort, without any doubt.
    bounds = {**signal_bounds(z, own_error(z), everything), "top_k_overlap": 0.0}
    for name, column in signals_of_logits(z, everything).items():
        if facts[name].dtype == np.int32:
            np.testing.assert_array_equal(facts[name], column, err_msg=name)
        else:
            assert_within(facts[name], column, bounds[name], name)


def own_error(z: np.ndarray) -> np.ndarray:
    """What a scale or a soft-cap rounds the logits by, [exits, rows]."""
    error: np.ndarray = DEVIATIONS * UNIT * np.abs(np.where(np.isfinite(z), z, 0.0)).max(-1)
    return error


@pytest.mark.parametrize("head", ["linear", "readout"])
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_any_small_logits(head: str, data: st.DataObject) -> None:
    z = data.draw(tables(st.one_of(TIES, SMALL)))
    facts = measure(z, head=head, recording=data.draw(RECORDINGS))
    check_bounds(facts, z.shape[-1], np.abs(z).max())
    compare(facts, z)


@pytest.mark.parametrize("head", ["linear", "readout"])
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_huge_logits_give_no_overflow(head: str, data: st.DataObject) -> None:
    z = data.draw(tables(HUGE))
    facts = measure(z, head=head, recording=data.draw(RECORDINGS))
    infinite = {"logit_gap", "kl_to_previous"}  # without a second token, or an exit before
    assert all(np.isfinite(column).all() for name, column in facts.items() if name not in infinite)
    assert not any(np.isnan(column).any() for column in facts.values())
    check_bounds(facts, z.shape[-1], np.abs(z).max())
    first = np.array([[row.tolist().index(row.max()) for row in rows] for rows in z]).T
    assert np.array_equal(facts["top1"], first)


def test_logits_whose_squares_underflow() -> None:
    for value in (2.741e-42, 1e-38, 1e-20, 1e-19):
        z = np.full((1, 1, 1), value, dtype=np.float32)
        compare(measure(z, head="readout"), z)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_masked_columns_have_no_part_in_anything(data: st.DataObject) -> None:
    """-inf in the same columns at every exit: the facts are those of the vocabulary without them."""
    z = data.draw(tables(st.one_of(TIES, SMALL)))
    vocabulary = z.shape[-1]
    keep = data.draw(hypothesis_arrays.arrays(np.bool_, vocabulary))
    keep[0] = True  # column 0 is the next token
    masked = np.where(keep, z, MASKED)
    recording = data.draw(RECORDINGS)
    facts = measure(masked, head="readout", recording=recording)
    if recording.signals:
        check_signal_bounds(facts)
        compare_signals(facts, np.where(keep, z, -np.inf).astype(np.float64))
    alone = measure(np.ascontiguousarray(z[..., keep]), head="readout")
    assert np.array_equal(facts["top1"], np.flatnonzero(keep)[alone["top1"]])
    assert np.array_equal(facts["final_rank"], alone["final_rank"])
    kept = z[..., keep].astype(np.float64)
    exact = facts_of_logits(kept, np.zeros(kept.shape[1], dtype=np.int64))
    for name, bound in fact_bounds(kept, own_error(kept), exact).items():
        for found in (facts, alone):
            assert_within(found[name], exact[name], bound, name)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_bfloat16_products(data: st.DataObject) -> None:
    """Values that bfloat16 holds exactly: nothing is lost, whatever is recomputed in float32."""
    z = data.draw(tables(st.one_of(TIES, st.integers(-100, 100).map(lambda n: n / 8))))
    facts = measure(z, head="linear", dtype=torch.bfloat16)
    check_bounds(facts, z.shape[-1], np.abs(z).max())
    compare(facts, z)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("transform", [HeadTransform(scale=0.25), HeadTransform(cap=30.0)])
@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_scaled_and_capped_heads(transform: HeadTransform, dtype: torch.dtype, data: st.DataObject) -> None:
    z = data.draw(tables(st.integers(-400, 400).map(lambda n: n / 8)))
    z = torch.tensor(z).to(dtype).float().numpy()
    facts = measure(z, head="linear", dtype=dtype, transform=transform)
    check_bounds(facts, z.shape[-1], np.abs(z).max())
    compare(facts, transform(torch.tensor(z)).numpy())


@pytest.mark.parametrize("head", ["linear", "readout"])
@pytest.mark.parametrize("vocabulary", [1, 2, 63, 64, 65])
@pytest.mark.parametrize("value", [0.0, -1e6, 1e12])
def test_constant_logits(head: str, vocabulary: int, value: float) -> None:
    facts = measure(np.full((2, 3, vocabulary), value, dtype=np.float32), head=head)
    assert np.all(facts["top1"] == 0)
    assert np.all(facts["final_rank"] == 0)
    if vocabulary == 1:
        assert np.all(facts["margin"] == facts["max_prob"])
    else:
        assert np.all(facts["margin"] == 0)
    sums = DEVIATIONS * UNIT * np.sqrt(vocabulary)
    assert_within(facts["entropy"], np.full((3, 2), np.log(vocabulary)), sums * (1 + np.log(vocabulary)))
    assert_within(facts["max_prob"], np.full((3, 2), 1 / vocabulary), sums / vocabulary)


@pytest.mark.parametrize("vocabulary", [20, 700])
def test_more_ties_than_candidates_of_a_bfloat16_product(vocabulary: int) -> None:
    """Ties in more columns, or in more blocks of columns, than are computed again in float32."""
    z = np.zeros((2, 3, vocabulary), dtype=np.float32)
    z[0, 0, ::3] = 4.0
    z[0, 1, 5 :: max(1, vocabulary // 10)] = 4.0
    z[1, 2, -1] = 0.5
    facts = measure(z, head="linear", dtype=torch.bfloat16)
    compare(facts, z)


@pytest.mark.parametrize("head", ["linear", "readout"])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_a_bad_logit_is_a_defect_and_never_a_token(head: str, bad: float) -> None:
    """A state is made finite before it is kept, so the bad number must be noticed before that."""
    z = np.zeros((3, 4, 10), dtype=np.float32)
    z[1, 2, 7] = bad
    stack: Any = TableStack(torch.tensor(z))
    shape = StateShape(-2, None, 10)
    made: Any = (
        LinearHead(torch.eye(10), None, HeadTransform(), "eager")
        if head == "linear"
        else ReadoutHead(stack, 10, shape)
    )
    found = GroupMeasurer(stack, made, [1, 2, 3], shape, torch.float32).measure(
        [Context(0, 0, (0, 0), 0, first_row=0), Context(1, 0, (0, 0), 0, first_row=0)]
    )
    assert set(found.nonfinite) == {1}
    assert (found.nonfinite[1].layer, found.nonfinite[1].position) == (2, 0)


def test_another_last_digit_of_the_reference_moves_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of different shapes may round differently: a column is never above its own logit."""
    generator = np.random.default_rng(1)
    z = torch.tensor(generator.normal(size=(3, 40, 130)) * 4).bfloat16().float().numpy()
    z[0, :8, ::3] = 8.0  # more of the largest than are computed again
    expected = measure(z, head="linear", dtype=torch.bfloat16)["final_rank"]
    real = LinearHead.exact_logits

    def lower(head: LinearHead, states: Tensor, columns: Tensor) -> Tensor:
        found = real(head, states, columns)
        return found - found.abs() * 2.0**-22 if columns.shape[1] == 2 else found

    monkeypatch.setattr(LinearHead, "exact_logits", lower)
    found = measure(z, head="linear", dtype=torch.bfloat16)["final_rank"]
    tied = np.array(
        [
            [(row == row[best]).sum() > 1 for row, best in zip(rows, z[-1].argmax(-1), strict=True)]
            for rows in z
        ]
    ).T
    assert np.array_equal(found[~tied], expected[~tied])
    assert (~tied).mean() > 0.4


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_an_exit_like_the_one_before_has_settled(data: st.DataObject) -> None:
    z = data.draw(tables(SMALL))
    facts = measure(np.repeat(z[:1], 2, axis=0), head="linear", recording=Recording(tuple(SIGNAL_FACTS)))
    compare(facts, np.repeat(z[:1], 2, axis=0))
    assert np.all(facts["top_k_overlap"][:, 1] == 1)


def padded(z: np.ndarray) -> Tensor:
    width = -(-z.shape[1] // 64) * 64
    return torch.nn.functional.pad(torch.tensor(z), (0, width - z.shape[1]), value=-1e30)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_the_best_columns_are_those_of_a_stable_sort(data: st.DataObject) -> None:
    shape = (data.draw(st.integers(1, 3)), data.draw(st.integers(1, 1500)))
    values = st.one_of(TIES, SMALL, st.just(-np.inf))
    z = data.draw(hypothesis_arrays.arrays(np.float32, shape, elements=values, fill=TIES))
    count = data.draw(st.integers(1, min(30, shape[1])))
    cap = data.draw(st.sampled_from([0.0, 2.0]))
    columns, found = best_columns(padded(z), HeadTransform(cap=cap), count)
    transformed = HeadTransform(cap=cap)(torch.tensor(z)).numpy()
    expected = np.argsort(-transformed, axis=-1, kind="stable")[:, :count]
    assert np.array_equal(columns.numpy(), expected)
    assert np.array_equal(found.numpy(), np.take_along_axis(transformed, expected, -1))
