"""Decoding with an output head per exit: facts as traced, tokens by hand, and what it is charged."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from generation_cases import tiny_llama as tiny_llama_folder
from random_heads import output_logits, random_output_heads
from reading_cases import (
    EVERYWHERE,
    build_family,
    engine_of,
    needs_of,
    states_of,
    tiny_llama,
    tiny_model,
    traced,
)

import offramp
from offramp.decoding.exit_readout.reader import ExitReader
from offramp.errors import InputError, PolicyError
from offramp.models.model import Model
from offramp.tracing.heads_file import write_heads
from tiny_models import LAYERS, write_documents

POLICY = "threshold:signal=margin,value=0.2,exits=1+2+3"


@pytest.mark.parametrize("norm", ["model", "rms", "layer", "none"])
def test_facts_and_logits_are_the_traces_and_the_ones_by_hand(norm: str) -> None:
    model = tiny_llama()
    assert_read_as_traced(model, norm, 61, 2e-5)


@pytest.mark.parametrize(
    ("family", "head_scale", "dtype", "tolerance"),
    [
        ("gemma2", 60.0, "float32", 1e-4),
        ("granite", 60.0, "float32", 1e-4),
        ("llama", 20.0, "bfloat16", 2e-3),
    ],
)
def test_families(family: str, head_scale: float, dtype: str, tolerance: float) -> None:
    model = tiny_model(build_family(family), name=family, head_scale=head_scale, dtype=dtype)
    assert_read_as_traced(model, "rms", 503, tolerance)


def assert_read_as_traced(model: Model, norm: str, vocabulary: int, tolerance: float) -> None:
    below = tuple(range(1, model.layers))
    heads = random_output_heads(model, below, norm=norm)
    expected, ids = traced(model, heads, "all", vocabulary)
    needs = needs_of((*below, model.layers), heads, EVERYWHERE)
    reader = ExitReader(engine_of(model), heads, needs)
    states = states_of(model, ids)
    for place, exit in enumerate(below):
        hidden, before = states[exit]
        found = reader.read(exit, needs[exit], hidden, before)
        for name, values in found.items():
            column = expected.fact(name)[:, place]
            if values.dtype == np.int32:
                assert np.array_equal(values, column), (name, exit)
            else:
                np.testing.assert_allclose(values, column, rtol=tolerance, atol=tolerance, err_msg=name)
        if model.dtype == "float32":
            z = torch.tensor(output_logits(model, heads, place, hidden[:, -1].double().numpy()))
            assert model.stack.logit_scaling is not None
            by_hand = model.stack.logit_scaling.apply(z).float()
            torch.testing.assert_close(reader.logits(exit, hidden), by_hand, rtol=tolerance, atol=tolerance)


def test_the_short_list_is_read_off_the_exits_own_columns() -> None:
    model = tiny_llama()
    heads = random_output_heads(model, (1, 2))
    reader = ExitReader(engine_of(model), heads, {1: (), 2: ()}, short_list=True)
    hidden, _ = states_of(model, [3, 1, 4, 1, 5])[2]
    z = output_logits(model, heads, 1, hidden[:, -1].double().numpy())
    np.testing.assert_allclose(reader.logits(2, hidden).numpy(), z, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kv", ["recompute", "speculate"])
def test_forced_exits_are_those_of_replay_and_tokens_those_of_the_own_heads(kv: str, tmp_path: Path) -> None:
    model = tiny_llama_folder()
    heads = random_output_heads(model, (1, 2, 3))
    write_heads(heads, tmp_path / "heads")
    path = write_documents(tmp_path / "documents.jsonl", documents=3, words=12)
    trace = offramp.trace(model, f"jsonl:{path}#text", tokens=60, heads=tmp_path / "heads")
    expected = offramp.replay(trace, POLICY).exits
    assert len(set(expected.tolist())) > 2
    for document in np.unique(trace.document):
        rows = np.flatnonzero(trace.document == document)
        text = [*trace.token[rows].tolist(), int(trace.next_token[rows[-1]])]
        found = offramp.generate(
            model, [[0]], policy=POLICY, kv=kv, force_tokens=[text], heads=tmp_path / "heads"
        )[0]
        assert found.exits[1:].tolist() == expected[rows].tolist()
        if kv == "recompute":
            assert found.chosen[1:] == trace.top1[rows, found.exits[1:] - 1].tolist()
            plain = offramp.generate(model, [[0]], policy=POLICY, kv=kv, force_tokens=[text])[0]
            assert plain.chosen != found.chosen


def test_a_policy_is_bound_to_the_output_heads_that_it_was_tuned_with(tmp_path: Path) -> None:
    model = tiny_llama_folder()
    heads, other = (random_output_heads(model, (1, 2, 3), seed=seed) for seed in (0, 1))
    path = write_documents(tmp_path / "documents.jsonl", documents=48, words=20)
    trace = offramp.trace(model, f"jsonl:{path}#text", tokens=900, heads=heads)
    tuned = offramp.tune(trace, floor={"agreement": 0.2}, hardware=None)
    assert tuned.model["heads"] == {"fingerprint": heads.fingerprint, "lens": False, "output": True}
    early = dataclasses.replace(tuned, policy_text=POLICY)
    offramp.generate(model, "the cat", policy=early, heads=heads, max_new_tokens=2)
    for given in (None, other):
        with pytest.raises(PolicyError, match="tuned with the exit heads"):
            offramp.generate(model, "the cat", policy=early, heads=given, max_new_tokens=2)


def test_an_exit_without_a_head_of_its_own_is_refused() -> None:
    model = tiny_llama()
    with pytest.raises(InputError, match="not fitted at exit 1; they have: 2"):
        ExitReader(engine_of(model), random_output_heads(model, (2,)), {1: ("margin",)})


def test_output_heads_need_a_model_whose_logits_are_a_head_and_a_scale() -> None:
    model = tiny_llama()
    odd: Any = dataclasses.replace(model, stack=dataclasses.replace(model.stack, readout_kind="stub"))
    with pytest.raises(InputError, match="cannot have output heads of their own"):
        ExitReader(engine_of(odd), random_output_heads(model, (1, 2)), {1: ("margin",)})


def test_layers_are_left_out_for_real(tmp_path: Path) -> None:
    model = tiny_llama_folder()
    heads = random_output_heads(model, (1, 2, 3))
    found = offramp.generate(model, "the cat", policy="static:exit=2", heads=heads, max_new_tokens=6)
    assert found.exits.tolist() == [LAYERS, 2, 2, 2, 2, 2]
    prompt = len(model.encode("the cat"))
    assert found.layers_executed == LAYERS * prompt + 2 * 5
