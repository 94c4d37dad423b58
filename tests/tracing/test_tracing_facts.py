"""Facts of whole traces against the naive reference, on tiny models of many kinds."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from naive_facts import COSINES, Readings, assert_facts, following_of, gram_of, readings_of, states_of
from rounding import (
    DEVIATIONS,
    UNIT,
    assert_best,
    assert_within,
    bfloat16_bounds,
    product_bounds,
)
from tracing_models import build_family, llama, tiny_model, workload_of

from offramp.models.model import Model
from offramp.tracing.statistics import EXACT_COLUMNS, can_compile
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace

LENGTHS = (14, 14, 9, 12)


def trace_numbers(model: Model, vocabulary: int) -> tuple[Trace, list[list[int]]]:
    work = workload_of(lengths=LENGTHS, vocabulary=vocabulary)
    result = trace(model, work, tokens=1000, context=40, progress=False)
    return result, [[int(word) for word in document.text.split()] for document in work.documents]


@pytest.mark.parametrize(
    ("family", "head_scale"),
    [
        ("llama", 20.0),
        ("gpt2", 20.0),
        ("phi", 20.0),
        ("gemma2", 60.0),
        ("cohere", 100.0),
        ("granite", 60.0),
        ("mixtral", 20.0),
        ("mamba", 20.0),
        ("gemma3n_text", 5.0),
        ("hy_v4", 60.0),
        ("falcon_h1", 20.0),
    ],
)
def test_facts_equal_the_naive_reference(family: str, head_scale: float) -> None:
    model = tiny_model(build_family(family), name=family, head_scale=head_scale)
    found, sequences = trace_numbers(model, 503)
    assert_facts(found, readings_of(model, sequences), following_of(sequences))
    assert found.max_prob.max() > 0.05, "the logits are nearly uniform: this would test little"


def test_the_families_take_all_kinds_of_readout() -> None:
    readouts = {
        family: tiny_model(build_family(family)).stack
        for family in ("llama", "gemma2", "granite", "gemma3n_text")
    }
    assert readouts["llama"].readout_kind == "fast"
    assert readouts["gemma3n_text"].readout_kind == "swap"
    assert readouts["gemma2"].logit_scaling is not None
    assert readouts["gemma2"].logit_scaling.kind == "softcap"
    assert readouts["granite"].logit_scaling is not None
    assert readouts["granite"].logit_scaling.kind == "scale"


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 40, 63, 64, 65, 130])
@pytest.mark.parametrize("tied", [True, False])
def test_odd_vocabularies(vocabulary: int, tied: bool) -> None:
    model = tiny_model(llama(vocabulary, tie_word_embeddings=tied), head_scale=3.0)
    found, sequences = trace_numbers(model, vocabulary)
    assert_facts(found, readings_of(model, sequences), following_of(sequences))
    assert found.top1.max() < vocabulary
    if vocabulary == 1:
        assert np.all(found.max_prob == 1)
        assert np.all(found.margin == 1)
        assert np.all(found.entropy == 0)


def test_a_masked_vocabulary() -> None:
    """-inf in the head's bias, as for tokens that a model must never write."""
    model = tiny_model(build_family("phi"), head_scale=20.0)
    masked = [7, 100, 301]
    model.hf.lm_head.bias[masked] = -torch.inf
    found, sequences = trace_numbers(model, 503)
    assert_facts(found, readings_of(model, sequences), following_of(sequences))
    assert not np.isin(found.top1, masked).any()
    assert np.isfinite(found.kl_to_final).all()


def test_an_observed_token_that_is_masked_makes_its_document_invalid() -> None:
    model = tiny_model(build_family("phi"), head_scale=20.0)
    model.hf.lm_head.bias[7] = -torch.inf
    found = trace(model, workload_of("1 2 7 3", "1 2 3 4"), tokens=100, context=40, progress=False)
    assert [document.valid for document in found.documents] == [False, True]
    assert found.documents[0].reason == "a non-finite number at layer 1, position 1"
    assert np.isfinite(found.nll).all()


def test_a_softcapped_head_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.tracing.measurement.FORWARD_TOKENS", 1)  # the shapes of the reference
    model = tiny_model(build_family("gemma2"), head_scale=60.0, dtype="bfloat16")
    found, sequences = trace_numbers(model, 503)
    readings = rounded_readings(model, sequences)
    expected, bounds = readings.facts(following_of(sequences))
    assert_best(found.top1, readings.logits, readings.error)
    for name, more in bfloat16_bounds(readings.logits, EXACT_COLUMNS).items():
        if name != "kl_to_final":  # summed over logits that are all rounded
            assert_within(found.fact(name), expected[name], bounds[name] + more, name)


def rounded_logits(model: Model, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Logits in float64 of 16-bit states and weights, which round nothing, and float32's error of any.

    Both processors and shapes choose kernels, and a state of another kernel is off by 2^-8: the states must
    be of the shapes that are compared.
    """
    with torch.no_grad():
        normed = model.hf.model.norm(torch.tensor(after).to(getattr(torch, model.dtype))).double()
    weight = model.hf.lm_head.weight.detach().double()
    z: np.ndarray = (normed @ weight.t()).numpy()
    cap = getattr(model.hf.config, "final_logit_softcapping", None)
    error = product_bounds(normed.numpy(), weight.numpy()) + DEVIATIONS * UNIT * np.abs(z).max(-1)
    return (z if cap is None else cap * np.tanh(z / cap)), error


def rounded_readings(model: Model, sequences: list[list[int]]) -> Readings:
    """Readings in float64 of the model's own 16-bit states and weights."""
    pairs = [states_of(model, ids[:-1]) for ids in sequences]
    before, after = (np.concatenate([pair[i] for pair in pairs], axis=1) for i in (0, 1))
    z, error = rounded_logits(model, after)
    nothing = np.zeros_like(error)
    return Readings(z, error, before, after, nothing, nothing, gram_of(model, after))


def test_bfloat16_on_a_wide_vocabulary_moves_agreement_by_a_thousandth_at_most(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Logits beyond 16 are rounded to steps of 0.125 by a bfloat16 product, which breaks many a tie."""
    monkeypatch.setattr("offramp.tracing.measurement.FORWARD_TOKENS", 1)  # the shapes of the reference
    vocabulary = 6000
    hf = llama(vocabulary, hidden_size=64, intermediate_size=64)
    model = tiny_model(hf, dtype="bfloat16", head_scale=6.0)
    work = workload_of(lengths=[80] * 13, vocabulary=vocabulary)
    sequences = [[int(word) for word in document.text.split()] for document in work.documents]
    found = trace(model, work, tokens=10_000, context=96, document_tokens=80, progress=False)
    assert found.token_count == 13 * 79
    readings = rounded_readings(model, sequences)
    expected, bounds = readings.facts(following_of(sequences))
    agreement = (expected["top1"] == expected["top1"][:, -1:]).mean(0)
    assert np.abs(found.agreement.mean(0) - agreement).max() <= 0.001
    assert (found.top1 != expected["top1"]).mean(0).max() <= 0.001
    off = found.final_rank != expected["final_rank"]
    assert off[expected["final_rank"] < 3].mean() <= 0.01, "ranks near the top come from float32 logits"
    of_others = bfloat16_bounds(readings.logits, EXACT_COLUMNS)
    assert np.median(of_others["max_prob"]) < 0.004, "the bound would hide what is to be shown"
    for name, bound in bounds.items():
        if name != "shuffled_logit_cosine":  # of a partner in another group than the reference's
            more = 0.0 if name in COSINES else of_others.get(name, 0.0)
            assert_within(found.fact(name), expected[name], bound + more, name)
    naive = rounded_product_top1(model, readings.after)
    assert (naive != expected["top1"]).mean() > 0.005, "the plain product must be worse, or nothing is shown"


def rounded_product_top1(model: Model, after: np.ndarray) -> np.ndarray:
    """Top-1 [rows, exits] of the plain bfloat16 head."""
    with torch.no_grad():
        z = model.hf.lm_head(model.hf.model.norm(torch.tensor(after).to(torch.bfloat16)))
    best: np.ndarray = z.argmax(-1).t().numpy()
    return best


def test_compiled_reductions_give_the_same_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    if not can_compile():
        pytest.skip("torch cannot compile for this processor")
    model = tiny_model(build_family("llama"), head_scale=20.0)
    _, sequences = trace_numbers(model, 503)
    monkeypatch.setattr("offramp.tracing.tracer.choose_reductions", lambda *size: "compiled")
    compiled, _ = trace_numbers(model, 503)
    assert compiled.provenance["request"]["reductions"] == "compiled"
    assert_facts(compiled, readings_of(model, sequences), following_of(sequences))
