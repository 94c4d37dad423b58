"""Facts recorded on request against the naive reference, on tiny models of many kinds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from naive_facts import assert_signals, readings_of
from rounding import assert_within
from test_tracing_facts import rounded_readings
from tracing_models import NumberTokenizer, build_family, llama, tiny_llama, tiny_model, workload_of

from offramp.errors import InputError
from offramp.models.model import Model
from offramp.tracing.facts import DOCUMENT_FACTS, FACTS, HEAD_FACTS, SIGNAL_FACTS
from offramp.tracing.request import parse_signals
from offramp.tracing.restricted_vocabulary import SHORTLIST
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace

LENGTHS = (14, 14, 9, 12)
EXTRA_FACTS = tuple(fact for facts in SIGNAL_FACTS.values() for fact in facts)


def trace_signals(model: Model, vocabulary: int, **options: Any) -> tuple[Trace, list[list[int]]]:
    work = workload_of(lengths=LENGTHS, vocabulary=vocabulary)
    settings = {"signals": "all", "tokens": 1000, "context": 40, "progress": False} | options
    sequences = [[int(word) for word in document.text.split()] for document in work.documents]
    return trace(model, work, **settings), sequences


def strengthen_layers(hf: Any) -> None:
    """Layers that change the hidden state a lot, so that exits differ."""
    for name, parameter in hf.named_parameters():
        if "layers" in name and parameter.dim() == 2:
            parameter.mul_(5)


def assert_equals(found: Trace, model: Model, sequences: list[list[int]], exits: Any = None) -> None:
    """The signals are the naive ones, with the shortlist of a trace without heads."""
    vocabulary = model.shape.vocabulary_size
    readings = readings_of(model, sequences, exits)
    shortlist = list(range(min(SHORTLIST, vocabulary)))
    assert_signals(found, readings.logits, readings.error, shortlist)


@pytest.mark.parametrize(
    ("family", "head_scale"),
    [("llama", 20.0), ("phi", 20.0), ("gemma2", 400.0), ("granite", 60.0), ("mamba", 2.0), ("hy_v4", 60.0)],
)
def test_signals_equal_the_naive_reference(family: str, head_scale: float) -> None:
    model = tiny_model(build_family(family), name=family, head_scale=head_scale, change=strengthen_layers)
    found, sequences = trace_signals(model, 503)
    assert_equals(found, model, sequences)
    assert np.median(found.js_to_previous[:, 1:]) > 2e-4, "the exits hardly differ: this tests little"


def test_a_model_that_is_read_out_by_its_own_forward() -> None:
    model = tiny_model(build_family("gemma3n_text"), head_scale=5.0)
    assert model.stack.readout_kind == "swap"
    found, sequences = trace_signals(model, 503)
    assert_equals(found, model, sequences)


@pytest.mark.parametrize("vocabulary", [1, 2, 3, 9, 11, 64, 65, 2100])
def test_odd_vocabularies(vocabulary: int) -> None:
    model = tiny_model(llama(vocabulary), head_scale=3.0)
    found, sequences = trace_signals(model, vocabulary)
    assert_equals(found, model, sequences)


def test_a_masked_vocabulary() -> None:
    model = tiny_model(build_family("phi"), head_scale=20.0)
    model.hf.lm_head.bias[[0, 7, 100, 301]] = -np.inf
    found, sequences = trace_signals(model, 503)
    sequences = [ids for ids, record in zip(sequences, found.documents, strict=True) if record.valid]
    assert_equals(found, model, sequences)


@pytest.mark.parametrize(("family", "head_scale"), [("llama", 20.0), ("gemma2", 60.0)])
def test_signals_are_float32_accurate_in_bfloat16(
    family: str, head_scale: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("offramp.tracing.measurement.FORWARD_TOKENS", 1)  # the shapes of the reference
    model = tiny_model(build_family(family), head_scale=head_scale, dtype="bfloat16")
    found, sequences = trace_signals(model, 503)
    readings = rounded_readings(model, sequences)
    assert_signals(found, readings.logits, readings.error, list(range(503)))


def test_cheap_signals_do_not_need_a_float32_product(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a comparison of exits the product stays in bfloat16; its best logits are taken again."""
    monkeypatch.setattr("offramp.tracing.measurement.FORWARD_TOKENS", 1)
    model = tiny_model(build_family("llama"), head_scale=20.0, dtype="bfloat16")
    found, sequences = trace_signals(model, 503, signals=("restricted", "logit_gap"))
    readings = rounded_readings(model, sequences)
    assert_signals(found, readings.logits, readings.error, list(range(503)))


def test_the_previous_exit_is_the_previous_traced_one() -> None:
    model = tiny_llama()
    found, sequences = trace_signals(model, 61, exits="1")
    assert found.exits.tolist() == [1, 3]
    assert_equals(found, model, sequences, [1, 3])
    last, _ = trace_signals(model, 61, exits="3")
    assert np.all(np.isposinf(last.kl_to_previous))
    assert np.all(last.js_to_previous == np.float32(np.log(2)))
    assert np.all(last.top_k_overlap == 0)


def test_rows_in_several_chunks_give_the_same_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("offramp.tracing.measurement.BLOCK_ROWS", 40)
    monkeypatch.setattr("offramp.tracing.head.BLOCK_ROWS", 16)
    monkeypatch.setattr("offramp.tracing.recorders.eager_elements", lambda device: 3 * 61)
    found, sequences = trace_signals(tiny_llama(), 61)
    assert_equals(found, tiny_llama(), sequences)


def test_the_facts_of_every_trace_stay_the_same() -> None:
    plain, _ = trace_signals(tiny_llama(), 61, signals=())
    extended, _ = trace_signals(tiny_llama(), 61)
    for fact in FACTS:
        assert np.array_equal(plain.fact(fact.name), extended.fact(fact.name)), fact.name
    assert plain.provenance["request_fingerprint"] != extended.provenance["request_fingerprint"]
    assert extended.provenance["request"]["signals"] == sorted(SIGNAL_FACTS)
    assert extended.provenance["request"]["heads"] is None


def test_only_what_was_asked_for_is_held_and_the_rest_says_how_to_get_it() -> None:
    found, _ = trace_signals(tiny_llama(), 61, signals=["logit_gap"])
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
    with pytest.raises(InputError, match="no fact 'logit_gab'") as caught:
        found.fact("logit_gab")
    assert "did you mean logit_gap" in caught.value.fix


# -- prompts


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


# -- names


def test_every_fact_on_request_is_explained_with_its_option() -> None:
    page = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text(encoding="utf-8")
    for option, facts in SIGNAL_FACTS.items():
        for fact in facts:
            assert f"| `{fact.name}`" + ("" if fact.name == option else f" (`{option}`)") in page
    for fact in (*HEAD_FACTS, *DOCUMENT_FACTS.values()):
        assert f"| `{fact.name}` |" in page


@pytest.mark.parametrize(
    ("signals", "expected"),
    [
        ((), ()),
        ("", ()),
        ("restricted, logit_gap", ("logit_gap", "restricted")),
        ("restricted+logit_gap", ("logit_gap", "restricted")),
        (["restricted", "restricted"], ("restricted",)),
        ("all", tuple(sorted(SIGNAL_FACTS))),
        (["logit_gap", "all"], tuple(sorted(SIGNAL_FACTS))),
    ],
)
def test_signals_are_names(signals: Any, expected: tuple[str, ...]) -> None:
    assert parse_signals(signals, "text") == expected


def test_all_is_what_the_mode_allows() -> None:
    assert parse_signals("all", "generation") == tuple(sorted((*SIGNAL_FACTS, *DOCUMENT_FACTS)))


@pytest.mark.parametrize(
    ("signals", "what", "fix"),
    [
        ("kl_to_previus", "unknown signal 'kl_to_previus'", "did you mean kl_to_previous"),
        (["restricted", "js"], "unknown signal 'js'", "choose among"),
        ("prompt_entropy", "prompt_entropy describes a prompt", "leave prompt_entropy out"),
    ],
)
def test_bad_signals_are_refused_before_anything_is_measured(
    signals: Any, what: str, fix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_llama()
    monkeypatch.setattr(type(model.stack), "capture", lambda *arguments: pytest.fail("measured"))
    with pytest.raises(InputError) as caught:
        trace_signals(model, 61, signals=signals)
    assert what in caught.value.what
    assert fix in caught.value.fix
    assert caught.value.where == "--signals"
