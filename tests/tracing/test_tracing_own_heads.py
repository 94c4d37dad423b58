"""Traces of models whose exits have output heads of their own: every logit by hand, exit L untouched."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from naive_facts import (
    Readings,
    assert_facts,
    assert_signals,
    following_of,
    log_softmax,
    logits_of,
    readings_of,
    states_of,
)
from random_heads import output_logits, random_heads, random_output_heads
from tracing_models import build_family, tiny_llama, tiny_model, workload_of

from offramp.errors import InputError
from offramp.models.model import Model
from offramp.policies.policy_cost import prices_of
from offramp.policies.replay import replay
from offramp.tracing.exit_heads import ExitHeads
from offramp.tracing.facts import FACTS, SIGNAL_FACTS
from offramp.tracing.heads_file import read_heads, write_heads
from offramp.tracing.restricted_vocabulary import SHORTLIST
from offramp.tracing.trace import Trace
from offramp.tracing.tracer import trace

LENGTHS = (14, 14, 9, 12)


def run(model: Model, heads: Any, vocabulary: int = 61, **options: Any) -> Trace:
    settings = {"tokens": 1000, "context": 40, "progress": False} | options
    return trace(model, workload_of(lengths=LENGTHS, vocabulary=vocabulary), heads=heads, **settings)


def by_hand(model: Model, heads: ExitHeads, vocabulary: int) -> tuple[Readings, np.ndarray]:
    """Readings from h -> norm -> W h + b at each exit and the model's own logits at L; the next tokens."""
    documents = workload_of(lengths=LENGTHS, vocabulary=vocabulary).documents
    sequences = [[int(word) for word in document.text.split()] for document in documents]
    transform = model.stack.logit_scaling
    assert transform is not None

    def logits(after: np.ndarray) -> np.ndarray:
        below = [
            transform.apply(torch.tensor(output_logits(model, heads, place, after[exit - 1]))).numpy()
            for place, exit in enumerate(heads.exits)
        ]
        last = np.concatenate([logits_of(model, ids[:-1], [model.layers])[0] for ids in sequences])
        return np.stack([*below, last])

    return readings_of(model, sequences, (*heads.exits, model.layers), logits), following_of(sequences)


def assert_by_hand(found: Trace, model: Model, heads: ExitHeads, vocabulary: int) -> None:
    readings, following = by_hand(model, heads, vocabulary)
    assert_facts(found, readings, following)
    if "logit_gap" in found.fact_names:
        shortlist = list(range(min(SHORTLIST, vocabulary)))
        assert_signals(found, readings.logits, readings.error, shortlist)


@pytest.mark.parametrize("norm", ["model", "rms", "layer", "none"])
def test_a_trace_through_own_heads_equals_the_one_by_hand(norm: str) -> None:
    model = tiny_llama()
    heads = random_output_heads(model, [1, 2], norm=norm, bias=norm != "none")
    assert_by_hand(run(model, heads, signals="all"), model, heads, 61)


@pytest.mark.parametrize(("family", "head_scale"), [("gemma2", 60.0), ("granite", 60.0), ("phi", 20.0)])
def test_what_the_model_does_to_its_logits_is_done_to_an_exits_too(family: str, head_scale: float) -> None:
    """A soft-cap, a divisor, and a head with a bias."""
    model = tiny_model(build_family(family), head_scale=head_scale)
    heads = random_output_heads(model, range(1, model.layers), norm="layer")
    assert_by_hand(run(model, heads, 503, signals="all"), model, heads, 503)


def test_a_masked_vocabulary_is_masked_at_exit_l_alone() -> None:
    model = tiny_model(build_family("phi"), head_scale=20.0)
    model.hf.lm_head.bias[[0, 7, 100, 301]] = -torch.inf
    heads = random_output_heads(model, range(1, model.layers))
    assert_by_hand(run(model, heads, 503), model, heads, 503)


def test_a_bfloat16_model_reads_its_own_heads_in_float32_accuracy() -> None:
    model = tiny_model(build_family("llama"), head_scale=20.0, dtype="bfloat16")
    heads = random_output_heads(model, range(1, model.layers), norm="rms", bias=False)
    assert heads.output is not None
    weight = torch.tensor(heads.output.weight).to(torch.bfloat16)
    heads = dataclasses.replace(
        heads, output=dataclasses.replace(heads.output, weight=weight.float().numpy())
    )
    found = run(model, heads, 503, signals=tuple(SIGNAL_FACTS))
    documents = workload_of(lengths=LENGTHS, vocabulary=503).documents
    sequences = [[int(word) for word in document.text.split()] for document in documents]
    after = np.concatenate([states_of(model, ids[:-1])[1] for ids in sequences], axis=1)
    for place in range(model.layers - 1):
        wide = torch.tensor(after[place]).float()
        root = torch.rsqrt(wide.square().mean(-1, keepdim=True) + 1e-2)
        normed = (wide * root * torch.tensor(heads.output.norm_weight[place])).to(torch.bfloat16).double()
        z = (normed @ weight[place].double().t()).numpy()
        assert np.mean(found.top1[:, place] == z.argmax(-1)) > 0.95
        assert np.median(np.abs(found.max_prob[:, place] - np.exp(log_softmax(z)).max(-1))) < 1e-3
    plain = run(model, None, 503, signals=tuple(SIGNAL_FACTS))
    for fact in FACTS:
        if fact.name not in ("shuffled_logit_cosine",):  # by another sum than the Gram matrix's
            assert np.array_equal(found.fact(fact.name)[:, -1], plain.fact(fact.name)[:, -1]), fact.name


def test_heads_equal_to_the_models_own_change_nothing() -> None:
    model = tiny_llama()
    heads = random_output_heads(model, [1, 2], norm="model", bias=False)
    assert heads.output is not None
    weight = np.broadcast_to(model.hf.lm_head.weight.numpy(), heads.output.weight.shape).copy()
    same = dataclasses.replace(heads, output=dataclasses.replace(heads.output, weight=weight))
    found, plain = run(model, same), run(model, None)
    documents = workload_of(lengths=LENGTHS, vocabulary=61).documents
    sequences = [[int(word) for word in document.text.split()] for document in documents]
    readings, following = readings_of(model, sequences), following_of(sequences)
    for one in (found, plain):
        assert_facts(one, readings, following)
    assert not np.allclose(run(model, heads).max_prob[:, :-1], plain.max_prob[:, :-1], atol=1e-3)


def test_some_exits_of_the_file_and_rows_in_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model(build_family("llama"), head_scale=20.0)
    heads = random_output_heads(model, range(1, model.layers))
    whole = run(model, heads, 503, signals="restricted")
    some = run(model, heads, 503, signals="restricted", exits="1,3")
    for name in whole.fact_names:
        assert np.array_equal(some.fact(name), whole.fact(name)[:, some.exits - 1]), name
    monkeypatch.setattr("offramp.tracing.measurement.BLOCK_ROWS", 40)
    monkeypatch.setattr("offramp.tracing.head.BLOCK_ROWS", 16)
    parts = run(model, heads, 503, signals="restricted")
    for name in whole.fact_names:
        if name != "shuffled_logit_cosine":  # partners are of the same block
            np.testing.assert_allclose(parts.fact(name), whole.fact(name), atol=1e-4, rtol=1e-4, err_msg=name)


def test_a_streamed_model_is_read_through_the_same_heads(tmp_path: Path) -> None:
    from offramp.models.loading import load_source
    from offramp.models.source import find_source
    from offramp.models.streamed_loading import load_streamed
    from tiny_models import write_llama

    source = find_source(str(write_llama(tmp_path / "tiny")))
    whole, streamed = load_source(source), load_streamed(source, dtype="float32")
    heads = random_output_heads(whole, (1, 2, 3))
    work = workload_of("the cat sat on the mat", "a model reads one token after another")
    found, expected = (trace(one, work, tokens=40, heads=heads, progress=False) for one in (streamed, whole))
    for name in expected.fact_names:
        assert np.array_equal(found.fact(name), expected.fact(name)), name


def test_one_buffer_of_logits_serves_every_exit() -> None:
    from offramp.tracing.fitted_heads import FittedHeads, OwnHeads
    from offramp.tracing.head import LinearHead
    from offramp.tracing.states import StateShape

    model = tiny_model(build_family("llama"))
    heads = random_output_heads(model, range(1, model.layers))
    fitted = FittedHeads.of(heads, range(1, model.layers + 1))
    own = OwnHeads.of(fitted, model.stack, StateShape(-2, None, model.shape.hidden_size), "eager")
    assert len({head.buffer.whole.data_ptr() for head in own.heads if isinstance(head, LinearHead)}) == 1


@pytest.mark.parametrize("norm", ["model", "layer"])
def test_a_file_of_output_heads_is_read_back(norm: str, tmp_path: Path) -> None:
    model = tiny_llama()
    heads = random_output_heads(model, [1, 2], norm=norm, bias=norm == "layer")
    write_heads(heads, tmp_path / "heads")
    found = read_heads(tmp_path / "heads")
    assert found.header() == heads.header()
    assert found.fingerprint == heads.fingerprint
    assert found.output is not None
    assert heads.output is not None
    for field in dataclasses.fields(heads.output):
        np.testing.assert_array_equal(getattr(found.output, field.name), getattr(heads.output, field.name))
    stored = run(model, tmp_path / "heads")
    assert np.array_equal(stored.entropy, run(model, heads).entropy)
    assert stored.provenance["request"]["heads"]["output"] is True


def test_a_check_costs_one_head_product_and_no_lens() -> None:
    """The bill of an exit with its own head is that of the model's head, since both are of one size."""
    model = tiny_llama()
    policy = "threshold:signal=margin,value=0.4,exits=1+2"
    plain, own = run(model, None), run(model, random_output_heads(model, [1, 2]))
    lens = run(model, random_heads(model, [1, 2], facts=()))
    assert prices_of(own).bytes.probes == prices_of(plain).bytes.probes
    assert prices_of(own).bytes.exit_head == prices_of(plain).bytes.exit_head
    assert prices_of(lens).bytes.probes["full head"] > prices_of(own).bytes.probes["full head"]
    result = replay(own, policy)
    costs, exits = prices_of(own).bytes, result.exits
    checks = np.minimum(exits, 2) * costs.probes["full head"]
    total = costs.overhead + costs.until_exit[exits - 1] + checks + np.where(exits == 3, costs.head, 0.0)
    assert result.breakdown.total == pytest.approx(total.sum())
    assert 0 < np.mean(exits < 3) < 1


# -- refused


def changed(**changes: Any) -> Any:
    def change(heads: ExitHeads) -> ExitHeads:
        assert heads.output is not None
        arrays = {name: value(heads.output) for name, value in changes.items()}
        return dataclasses.replace(heads, output=dataclasses.replace(heads.output, **arrays))

    return change


def poisoned(array: np.ndarray) -> np.ndarray:
    array = array.copy()
    array.flat[3] = np.nan
    return array


SPOILED = [
    (changed(weight=lambda output: poisoned(output.weight)), "output.weight holds a number that is not"),
    (changed(bias=lambda output: poisoned(output.bias)), "output.bias holds a number that is not finite"),
    (changed(weight=lambda output: output.weight[:, :60]), "output"),
    (changed(weight=lambda output: output.weight[:, :, :16]), "output"),
    (changed(norm_weight=lambda output: output.norm_weight[:1]), "output.norm_weight is"),
]


@pytest.mark.parametrize(("spoil", "what"), SPOILED)
def test_output_heads_that_do_not_fit_are_neither_traced_nor_written(
    spoil: Any, what: str, tmp_path: Path
) -> None:
    model = tiny_llama()
    heads = spoil(random_output_heads(model, [1, 2]))
    with pytest.raises(InputError, match=what):
        run(model, heads, output=tmp_path / "trace")
    with pytest.raises(InputError, match=what):
        write_heads(heads, tmp_path / "heads")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (changed(norm=lambda output: "batch"), "no norm 'batch'; there are: model, rms, layer, none"),
        (changed(norm=lambda output: "model"), "a model norm takes no weights"),
        (changed(norm_weight=lambda output: None), "a rms norm takes norm_weight"),
        (changed(epsilon=lambda output: None), "epsilon is None"),
    ],
)
def test_a_norm_without_sense_is_not_written(change: Any, what: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=what):
        write_heads(change(random_output_heads(tiny_llama(), [1, 2])), tmp_path / "heads")


def test_a_lens_and_output_heads_together_are_refused(tmp_path: Path) -> None:
    heads = random_output_heads(tiny_llama(), [1, 2])
    both = dataclasses.replace(heads, lens=random_heads(tiny_llama(), [1, 2]).lens)
    with pytest.raises(InputError, match="both through a lens and through output heads"):
        write_heads(both, tmp_path / "heads")


def test_a_model_whose_logits_are_more_than_a_head_is_refused(tmp_path: Path) -> None:
    model = tiny_llama()
    odd = dataclasses.replace(model, stack=dataclasses.replace(model.stack, readout_kind="stub"))
    with pytest.raises(InputError, match="cannot have output heads of their own"):
        run(odd, random_output_heads(model, [1, 2]), output=tmp_path / "trace")
    assert not (tmp_path / "trace").exists()
