"""Facts of whole traces against the naive reference, on tiny models of many kinds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from naive_facts import COSINES, facts_of_logits, facts_of_states, naive_facts, states_of
from tracing_models import build_family, llama, tiny_model, workload_of

from offramp.models.model import Model
from offramp.tracing.facts import FACTS
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace

LENGTHS = (14, 14, 9, 12)


def trace_numbers(model: Model, vocabulary: int) -> tuple[Trace, list[list[int]]]:
    work = workload_of(lengths=LENGTHS, vocabulary=vocabulary)
    result = trace(model, work, tokens=1000, context=40, progress=False)
    return result, [[int(word) for word in document.text.split()] for document in work.documents]


def assert_same_facts(found: Trace, expected: dict[str, np.ndarray], largest_logit: float) -> None:
    """Whole numbers equal; floats within 2e-5 or 2e-6 of the largest logit (float32 rounds to 6e-8 of it)."""
    tolerance = max(2e-5, 2e-6 * largest_logit)
    assert set(expected) == {fact.name for fact in FACTS}
    for fact in FACTS:
        column, wanted = found.fact(fact.name), expected[fact.name]
        assert column.dtype == fact.dtype
        assert column.shape == wanted.shape, fact.name
        if fact.dtype == "int32":
            assert np.array_equal(column, wanted), fact.name
        else:
            np.testing.assert_allclose(column, wanted, rtol=tolerance, atol=tolerance, err_msg=fact.name)


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
    assert_same_facts(found, *naive_facts(model, sequences))
    assert found.max_prob.max() > 0.05, "the logits are nearly uniform: this would test little"


def test_the_families_take_all_kinds_of_readout() -> None:
    readouts = {
        family: tiny_model(build_family(family)).stack
        for family in ("llama", "gemma2", "granite", "gemma3n_text")
    }
    assert readouts["llama"].readout_kind == "fast"
    assert readouts["gemma3n_text"].readout_kind == "swap"
    assert readouts["gemma2"].transform is not None
    assert readouts["gemma2"].transform.kind == "softcap"
    assert readouts["granite"].transform is not None
    assert readouts["granite"].transform.kind == "scale"


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 40, 63, 64, 65, 130])
@pytest.mark.parametrize("tied", [True, False])
def test_odd_vocabularies(vocabulary: int, tied: bool) -> None:
    model = tiny_model(llama(vocabulary, tie_word_embeddings=tied), head_scale=3.0)
    found, sequences = trace_numbers(model, vocabulary)
    assert_same_facts(found, *naive_facts(model, sequences))
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
    assert_same_facts(found, *naive_facts(model, sequences))
    assert not np.isin(found.top1, masked).any()
    assert np.isfinite(found.kl_to_final).all()


def test_an_observed_token_that_is_masked_makes_its_document_invalid() -> None:
    model = tiny_model(build_family("phi"), head_scale=20.0)
    model.hf.lm_head.bias[7] = -torch.inf
    found = trace(model, workload_of("1 2 7 3", "1 2 3 4"), tokens=100, context=40, progress=False)
    assert [document.valid for document in found.documents] == [False, True]
    assert found.documents[0].reason == "a non-finite number at layer 1, position 1"
    assert np.isfinite(found.nll).all()


def test_a_softcapped_head_in_bfloat16() -> None:
    model = tiny_model(build_family("gemma2"), head_scale=60.0, dtype="bfloat16")
    found, sequences = trace_numbers(model, 503)
    expected = rounded_reference(model, sequences, softcap=model.hf.config.final_logit_softcapping)
    assert np.array_equal(found.top1, expected["top1"])
    for name in ("max_prob", "margin", "entropy", "nll", "final_logprob", "logit_cosine"):
        np.testing.assert_allclose(found.fact(name), expected[name], atol=0.02, rtol=0.02, err_msg=name)


def rounded_logits(model: Model, sequences: list[list[int]], softcap: float | None) -> np.ndarray:
    """Logits in float64 of the model's bfloat16 states and weights: this head product does not round."""
    after = np.concatenate([states_of(model, ids[:-1])[1] for ids in sequences], axis=1)
    with torch.no_grad():
        normed = model.hf.model.norm(torch.tensor(after).to(torch.bfloat16)).double()
    z: np.ndarray = (normed @ model.hf.lm_head.weight.double().t()).numpy()
    return z if softcap is None else softcap * np.tanh(z / softcap)


def rounded_reference(
    model: Model, sequences: list[list[int]], softcap: float | None = None
) -> dict[str, np.ndarray]:
    """Facts in float64 of the model's bfloat16 states and weights."""
    states = [states_of(model, ids[:-1]) for ids in sequences]
    before, after = (np.concatenate([pair[i] for pair in states], axis=1) for i in (0, 1))
    z = rounded_logits(model, sequences, softcap)
    following = np.concatenate([np.array(ids[1:]) for ids in sequences])
    return {**facts_of_logits(z, following), **facts_of_states(before, after)}


def test_bfloat16_on_a_wide_vocabulary_moves_agreement_by_a_thousandth_at_most() -> None:
    """Logits beyond 16 are rounded to steps of 0.125 by a bfloat16 product, which breaks many a tie."""
    vocabulary = 6000
    hf = llama(vocabulary, hidden_size=64, intermediate_size=64)
    model = tiny_model(hf, dtype="bfloat16", head_scale=6.0)
    work = workload_of(lengths=[80] * 13, vocabulary=vocabulary)
    sequences = [[int(word) for word in document.text.split()] for document in work.documents]
    found = trace(model, work, tokens=10_000, context=96, document_tokens=80, progress=False)
    assert found.token_count == 13 * 79
    expected = rounded_reference(model, sequences)
    agreement = (expected["top1"] == expected["top1"][:, -1:]).mean(0)
    assert np.abs(found.agreement.mean(0) - agreement).max() <= 0.001
    assert (found.top1 != expected["top1"]).mean(0).max() <= 0.001
    off = found.final_rank != expected["final_rank"]
    assert off[expected["final_rank"] < 3].mean() <= 0.01, "ranks near the top come from float32 logits"
    tolerances = {"max_prob": 0.004, "margin": 0.004, "entropy": 0.02, "kl_to_final": 0.01, "nll": 0.01}
    for name, tolerance in tolerances.items():
        np.testing.assert_allclose(found.fact(name), expected[name], atol=tolerance, err_msg=name)
    for name in COSINES:
        if name != "shuffled_logit_cosine":  # of a partner in another group than the reference's
            np.testing.assert_allclose(found.fact(name), expected[name], atol=1e-4, err_msg=name)
    naive = torch.tensor(rounded_product_top1(model, sequences))
    assert (naive.numpy() != expected["top1"]).mean() > 0.005, (
        "the plain product must be worse, or nothing is shown"
    )


def rounded_product_top1(model: Model, sequences: list[list[int]]) -> Any:
    """Top-1 of the plain bfloat16 head."""
    after = np.concatenate([states_of(model, ids[:-1])[1] for ids in sequences], axis=1)
    with torch.no_grad():
        return (
            model.hf.lm_head(model.hf.model.norm(torch.tensor(after).to(torch.bfloat16)))
            .argmax(-1)
            .t()
            .numpy()
        )


def test_compiled_reductions_give_the_same_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(build_family("llama"), head_scale=20.0)
    eager, sequences = trace_numbers(model, 503)
    monkeypatch.setattr("offramp.tracing.tracer.choose_reductions", lambda elements: "compiled")
    compiled, _ = trace_numbers(model, 503)
    assert compiled.provenance["request"]["reductions"] == "compiled"
    expected, largest_logit = naive_facts(model, sequences)
    assert_same_facts(compiled, expected, largest_logit)
    assert_same_facts(compiled, {name: eager.fact(name) for name in expected}, largest_logit)
