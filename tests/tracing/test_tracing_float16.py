"""Models in float16: facts as exact as in bfloat16, from float32 statistics of 16-bit states."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from naive_facts import COSINES, following_of
from rounding import assert_best, assert_within, bfloat16_bounds, product_bounds
from test_tracing_facts import rounded_readings, trace_numbers
from tracing_models import build_family, llama, tiny_model, workload_of

import offramp
from offramp.costs.machine import Roofline
from offramp.costs.profile_file import read_profile
from offramp.errors import InputError
from offramp.heads.output_head import LinearHead
from offramp.heads.statistics import EXACT_COLUMNS, HeadTransform
from offramp.tracing.tracer import trace
from tiny_models import write_llama

STEP = 2.0**-11
"""What a product rounds a logit by, of its size."""


@pytest.mark.parametrize(("family", "scale"), [("llama", 20.0), ("gemma2", 60.0)])
def test_facts_equal_the_naive_reference(family: str, scale: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.tracing.group_measurer.FORWARD_TOKENS", 1)  # the shapes of the reference
    model = tiny_model(build_family(family), head_scale=scale, dtype="float16")
    found, sequences = trace_numbers(model, 503)
    readings = rounded_readings(model, sequences)
    expected, bounds = readings.facts(following_of(sequences))
    of_others = bfloat16_bounds(readings.logits, EXACT_COLUMNS, STEP)
    assert_best(found.top1, readings.logits, readings.error)
    for name, bound in bounds.items():
        if name != "kl_to_final" or family == "llama":  # else summed over logits that are all rounded
            more = 0.0 if name in COSINES and family == "llama" else of_others.get(name, 2 * STEP)
            assert_within(found.fact(name), expected[name], bound + more, name)


def test_products_in_float32_keep_every_bit_of_the_factors() -> None:
    """Factors of float16 lose three bits in bfloat16, which products of bfloat16 models may use."""
    torch.manual_seed(0)
    weight, states = torch.randn(70, 96).half(), torch.randn(5, 96).half()
    head = LinearHead(weight, None, HeadTransform(), "eager")
    exact = states.double() @ weight.double().t()
    bound = product_bounds(states.double().numpy(), weight.double().numpy())[:, None]
    tokens = torch.tensor([3, 5, 69])
    before = torch.get_float32_matmul_precision()
    for found, columns in (
        (head.exact_output(states)[:, :70].clone(), slice(None)),
        (head.exact_logits(states, tokens.expand(5, 3)), tokens),
        (head.restricted(tokens)(states, head.output(states)), tokens),
    ):
        assert ((found.double() - exact[:, columns]).abs().numpy() <= bound).all()
    assert torch.get_float32_matmul_precision() == before
    # The rounded product, whose padding no float16 number is low enough for.
    output = head.output(states)
    assert torch.isneginf(output[:, 70:]).all()
    np.testing.assert_allclose(output[:, :70].double(), exact, rtol=2 * STEP, atol=4 * STEP)


@pytest.mark.parametrize(("dtype", "precision"), [(torch.float16, "highest"), (torch.bfloat16, "medium")])
def test_only_factors_of_bfloat16_may_be_taken_as_such(
    dtype: torch.dtype, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few processors have such products: what is asked for is looked at, not what comes out."""
    asked: list[str] = []
    monkeypatch.setattr(
        "offramp.heads.output_head.products_in", lambda name: asked.append(name) or contextlib.nullcontext()
    )
    head = LinearHead(torch.randn(70, 96).to(dtype), None, HeadTransform(), "eager")
    states = torch.randn(5, 96).to(dtype)
    head.exact_output(states)
    head.restricted(torch.tensor([3]))(states, head.output(states))
    assert asked == [precision, precision]


def test_all_signals_are_finite_where_a_softmax_is() -> None:
    model = tiny_model(llama(130), head_scale=3.0, dtype="float16")
    work = workload_of(lengths=(14, 9, 30), vocabulary=130)
    found = trace(model, work, tokens=100, signals="all", progress=False)
    like = trace(tiny_model(llama(130), head_scale=3.0), work, tokens=100, signals="all", progress=False)
    assert found.request["dtype"] == "float16"
    assert found.shape.element_bytes == 2
    for name in found.fact_names:
        assert np.isfinite(found.fact(name)[:, 1:]).all(), name
    assert np.abs(found.max_prob - like.max_prob).max() < 0.02
    assert np.abs(found.js_to_previous - like.js_to_previous).max() < 0.02


def test_a_model_is_loaded_traced_priced_and_decoded(tmp_path: Path) -> None:
    folder = str(write_llama(tmp_path / "tiny"))
    half, rounded = (offramp.load_model(folder, dtype=dtype) for dtype in ("float16", "bfloat16"))
    assert half.hf.dtype == torch.float16
    work = workload_of("the cat sat on the mat", "a model reads")
    found = trace(half, work, tokens=9, progress=False)
    assert (found.shape.element_bytes, found.request["dtype"]) == (2, "float16")
    machine = Roofline("made up", "", "", {"float32": 1e11, "bfloat16": 2e11}, 1e10, 1e-6, 1e-6)
    assert machine.token_costs(half.shape, 5).head == machine.token_costs(rounded.shape, 5).head
    decoded = offramp.generate(half, "the cat sat", policy="static:exit=2", max_new_tokens=4)
    assert len(decoded.tokens) == 4


def test_timings_are_of_weights_of_as_many_bytes(tmp_path: Path) -> None:
    text = """
kind = "timings"
name = "made up"
source = "made up"
dtype = "float16"
unit = "seconds"
layers = 3
[[batch]]
size = 1
layer = 0.001
head = 0.002
"""
    (tmp_path / "machine.toml").write_text(text)
    timings = read_profile(tmp_path / "machine.toml")
    half, full = (tiny_model(llama(), dtype=dtype).shape for dtype in ("float16", "float32"))
    assert timings.token_costs(half, 3).head > 0
    with pytest.raises(InputError, match="weights in float16, this model's are in float32"):
        timings.token_costs(full, 3)
