"""Facts of whole traces against the naive reference, on tiny models of many kinds; and names of signals."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive_facts import (
    COSINES,
    Readings,
    assert_facts,
    assert_signals,
    following_of,
    gram_of,
    readings_of,
    states_of,
)
from rounding import (
    DEVIATIONS,
    UNIT,
    assert_best,
    assert_within,
    bfloat16_bounds,
    product_bounds,
)
from tracing_models import NumberTokenizer, build_family, llama, tiny_llama, tiny_model, workload_of

from offramp.defaults import SHORTLIST
from offramp.errors import InputError
from offramp.heads.at_work import CLASSIFIED_FACTS
from offramp.heads.statistics import EXACT_COLUMNS, can_compile, choose_reductions
from offramp.models.model import Model
from offramp.tracing.facts import DOCUMENT_FACTS, FACTS, HEAD_FACTS, SIGNAL_FACTS
from offramp.tracing.request import parse_signals
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace

LENGTHS = (14, 14, 9, 12)


def trace_numbers(model: Model, vocabulary: int, **options: Any) -> tuple[Trace, list[list[int]]]:
    work = workload_of(lengths=LENGTHS, vocabulary=vocabulary)
    settings = {"tokens": 1000, "context": 40, "progress": False} | options
    sequences = [[int(word) for word in document.text.split()] for document in work.documents]
    return trace(model, work, **settings), sequences


def strengthen_layers(hf: Any) -> None:
    """Layers that change the hidden state a lot, so that exits differ."""
    for name, parameter in hf.named_parameters():
        if "layers" in name and parameter.dim() == 2:
            parameter.mul_(5)


def assert_all_facts(found: Trace, model: Model, sequences: list[list[int]], exits: Any = None) -> None:
    """Facts of every trace and signals are the naive ones, with the shortlist of a trace without heads."""
    readings = readings_of(model, sequences, exits)
    assert_facts(found, readings, following_of(sequences))
    shortlist = list(range(min(SHORTLIST, model.shape.vocabulary_size)))
    assert_signals(found, readings.logits, readings.error, shortlist)


@pytest.mark.parametrize(
    ("family", "head_scale"),
    [
        ("llama", 20.0),
        ("phi", 20.0),
        ("gemma2", 100.0),
        ("granite", 60.0),
        ("mamba", 2.0),
        ("hy_v4", 60.0),
        ("gemma3n_text", 5.0),
    ],
)
def test_facts_equal_the_naive_reference(family: str, head_scale: float) -> None:
    model = tiny_model(build_family(family), name=family, head_scale=head_scale, change=strengthen_layers)
    found, sequences = trace_numbers(model, 503, signals="all")
    assert_all_facts(found, model, sequences)
    assert found.max_prob.max() > 0.05, "the logits are nearly uniform: this would test little"
    assert np.median(found.js_to_previous[:, 1:]) > 2e-4, "the exits hardly differ: this tests little"


def test_the_families_take_all_kinds_of_readout() -> None:
    found = {}
    for family in ("llama", "gemma2", "granite", "gemma3n_text"):
        stack = tiny_model(build_family(family)).stack
        found[family] = (stack.readout_kind, stack.logit_scaling and stack.logit_scaling.kind)
    assert found["llama"] == ("fast", "identity")
    assert found["gemma2"] == ("fast", "softcap")
    assert found["granite"] == ("fast", "scale")
    assert found["gemma3n_text"][0] == "swap"


@pytest.mark.parametrize(
    ("vocabulary", "tied"),
    [(1, True), (2, False), (3, True), (9, False), (11, True), (64, False), (65, True), (2100, False)],
)
def test_odd_vocabularies(vocabulary: int, tied: bool) -> None:
    model = tiny_model(llama(vocabulary, tie_word_embeddings=tied), head_scale=3.0)
    found, sequences = trace_numbers(model, vocabulary, signals="all")
    assert_all_facts(found, model, sequences)
    assert found.top1.max() < vocabulary
    if vocabulary == 1:
        assert np.all(found.max_prob == 1)
        assert np.all(found.margin == 1)
        assert np.all(found.entropy == 0)


def test_a_masked_vocabulary() -> None:
    """-inf in the head's bias, as for tokens that a model must never write; where one is observed, its
    document is left out."""
    model = tiny_model(build_family("phi"), head_scale=20.0)
    masked = [0, 7, 100, 301]
    model.hf.lm_head.bias[masked] = -torch.inf
    found, sequences = trace_numbers(model, 503, signals="all")
    sequences = [ids for ids, record in zip(sequences, found.documents, strict=True) if record.valid]
    assert_all_facts(found, model, sequences)
    assert not np.isin(found.top1, masked).any()
    assert np.isfinite(found.kl_to_final).all()
    found = trace(model, workload_of("1 2 7 3", "1 2 3 4"), tokens=100, context=40, progress=False)
    assert [document.valid for document in found.documents] == [False, True]
    assert found.documents[0].reason == "a non-finite number at layer 1, position 1"
    assert np.isfinite(found.nll).all()


@pytest.mark.parametrize(("family", "head_scale"), [("llama", 20.0), ("gemma2", 60.0)])
def test_facts_are_float32_accurate_in_bfloat16(
    family: str, head_scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Comparing exits takes every product in float32; cheaper signals have the best logits taken again."""
    monkeypatch.setattr("offramp.tracing.group_measurer.FORWARD_TOKENS", 1)  # the shapes of the reference
    model = tiny_model(build_family(family), head_scale=head_scale, dtype="bfloat16")
    found, sequences = trace_numbers(model, 503, signals="all")
    readings = rounded_readings(model, sequences)
    assert_signals(found, readings.logits, readings.error, list(range(503)))
    found, _ = trace_numbers(model, 503, signals=("restricted", "logit_gap"))
    assert_signals(found, readings.logits, readings.error, list(range(503)))
    found, _ = trace_numbers(model, 503)
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
    monkeypatch.setattr("offramp.tracing.group_measurer.FORWARD_TOKENS", 1)  # the shapes of the reference
    vocabulary = 3000
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


def test_small_traces_are_not_compiled() -> None:
    assert choose_reductions(10**6) == "eager"
    assert choose_reductions(10**12) == ("compiled" if can_compile() else "eager")
    assert can_compile() <= (shutil.which("g++") is not None)
    assert trace_numbers(tiny_llama(), 61)[0].provenance["request"]["reductions"] == "eager"


def test_the_previous_exit_is_the_previous_traced_one() -> None:
    model = tiny_llama()
    found, sequences = trace_numbers(model, 61, signals="all", exits="1")
    assert found.exits.tolist() == [1, 3]
    assert_all_facts(found, model, sequences, [1, 3])
    last, _ = trace_numbers(model, 61, signals="all", exits="3")
    assert np.all(np.isposinf(last.kl_to_previous))
    assert np.all(last.js_to_previous == np.float32(np.log(2)))
    assert np.all(last.top_k_overlap == 0)


def test_rows_in_several_blocks_and_chunks_give_the_same_facts(monkeypatch: pytest.MonkeyPatch) -> None:
    whole, sequences = trace_numbers(tiny_llama(), 61, signals="all")
    monkeypatch.setattr("offramp.tracing.group_measurer.BLOCK_ROWS", 40)
    monkeypatch.setattr("offramp.heads.output_head.BLOCK_ROWS", 16)
    monkeypatch.setattr("offramp.tracing.recorders.eager_elements", lambda device: 3 * 61)
    found, _ = trace_numbers(tiny_llama(), 61, signals="all")
    readings, following = readings_of(tiny_llama(), sequences), following_of(sequences)
    assert_facts(found, readings, following, but=("shuffled_logit_cosine",))  # partners are of the same block
    assert_signals(found, readings.logits, readings.error, list(range(61)))
    np.testing.assert_allclose(found.marginal.sums, whole.marginal.sums, atol=1e-5)


@pytest.mark.parametrize("family", ["llama", "gemma2", "gemma3n_text"])
def test_the_facts_of_every_trace_stay_the_same(family: str) -> None:
    model = tiny_model(build_family(family), head_scale=20.0)
    plain, _ = trace_numbers(model, 503)
    extended, _ = trace_numbers(model, 503, signals="all")
    for fact in FACTS:
        assert np.array_equal(plain.fact(fact.name), extended.fact(fact.name)), fact.name
    assert plain.provenance["request_fingerprint"] != extended.provenance["request_fingerprint"]
    assert extended.provenance["request"]["signals"] == sorted(SIGNAL_FACTS)
    assert extended.provenance["request"]["heads"] is None


def test_only_what_was_asked_for_is_held_and_the_rest_says_how_to_get_it() -> None:
    found, _ = trace_numbers(tiny_llama(), 61, signals=["logit_gap"])
    assert found.fact_names == (*(fact.name for fact in FACTS), "logit_gap")
    assert "logit_gap" in dir(found)
    assert "kl_to_previous" not in dir(found)
    for name, option in [
        ("kl_to_previous", "--signals kl_to_previous"),
        ("restricted_margin", "--signals restricted"),
        ("correctness", "--heads FILE"),
    ]:
        with pytest.raises(InputError, match=f"the trace does not hold '{name}'") as caught:
            found.fact(name)
        assert caught.value.fix == f"trace again with {option}"
    with pytest.raises(InputError, match="trace does not hold 'prompt_entropy'"):
        found.document_fact("prompt_entropy")
    with pytest.raises(InputError, match="unknown fact 'logit_gab'") as caught:
        found.fact("logit_gab")
    assert "did you mean 'logit_gap'" in caught.value.fix


def test_prompt_entropy_is_the_mean_over_the_end_of_the_prompt(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.tracing.recorders.PROMPT_TOKENS", 4)
    model = tiny_model(llama(), head_scale=3.0, tokenizer=NumberTokenizer())
    prompts = ("5 6 7 8 9 10 11", "12 13", "14", "15 16 17 18")
    work = workload_of(*prompts, mode="generation")
    found = trace(model, work, signals="all", tokens=30, context=30, progress=False)
    assert found.provenance["request"]["signals"] == sorted((*SIGNAL_FACTS, *DOCUMENT_FACTS))
    column = found.document_fact("prompt_entropy")
    assert column.dtype == np.float64
    assert column.shape == found.document.shape
    for number, record in enumerate(found.documents):
        prompt = prompts[int(record.id.split()[1])]
        ids = [int(word) for word in prompt.split()]
        facts, bounds = readings_of(model, [[*ids, 0]]).facts(np.zeros(len(ids), dtype=np.int64))
        expected, bound = (values["entropy"][-4:, -1].mean() for values in (facts, bounds))
        rows = column[found.document == number]
        assert_within(rows, np.full_like(rows, expected), bound)
    assert found.subset(np.array([1])).document_fact("prompt_entropy").tolist() == (
        column[found.document == 1].tolist()
    )


def test_every_fact_on_request_is_explained_with_its_option() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for option, facts in SIGNAL_FACTS.items():
        for fact in facts:
            assert f"| `{fact.name}`" + ("" if fact.name == option else f" (`{option}`)") in page
    for fact in (*HEAD_FACTS, *DOCUMENT_FACTS.values()):
        assert f"| `{fact.name}` |" in page


def test_what_classifiers_give_is_explained() -> None:
    assert {fact.name for fact in HEAD_FACTS} == set(CLASSIFIED_FACTS)


@pytest.mark.parametrize(
    ("signals", "mode", "expected"),
    [
        ((), "text", ()),
        ("", "text", ()),
        ("restricted, logit_gap", "text", ("logit_gap", "restricted")),
        ("restricted+logit_gap", "text", ("logit_gap", "restricted")),
        (["restricted", "restricted"], "text", ("restricted",)),
        (["logit_gap", "all"], "text", tuple(sorted(SIGNAL_FACTS))),
        ("all", "generation", tuple(sorted((*SIGNAL_FACTS, *DOCUMENT_FACTS)))),
    ],
)
def test_signals_are_names(signals: Any, mode: str, expected: tuple[str, ...]) -> None:
    assert parse_signals(signals, mode) == expected


@pytest.mark.parametrize(
    ("signals", "what", "fix"),
    [
        ("kl_to_previus", "unknown signal 'kl_to_previus'", "did you mean 'kl_to_previous'"),
        (["restricted", "js"], "unknown signal 'js'", "choose one of"),
        ("prompt_entropy", "prompt_entropy describes a prompt", "leave prompt_entropy out"),
    ],
)
def test_bad_signals_are_refused_before_anything_is_measured(
    signals: Any, what: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama()
    monkeypatch.setattr(type(model.stack), "capture", lambda *arguments: pytest.fail("measured"))
    with pytest.raises(InputError) as caught:
        trace_numbers(model, 61, signals=signals)
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.where == "signals= (--signals)"
