"""Encoder-decoders traced, rerun and decoded, each row given what its source says."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from given_cases import LEAVING, RERUNS, assert_reruns_are_forced_decoding

import offramp
from offramp.decoding.openings import prompts_of
from offramp.errors import InputError
from offramp.kit.given import GivenIds, given_of
from offramp.models.model import Model
from offramp.timing.decoder import PlainRunning, batches_of
from offramp.tracing.trace import Trace
from offramp.workloads.workload import Workload
from tiny_models import write_bart, write_pairs, write_t5

TOKENS = 160
SOURCES = ("the cat sat on the mat", "deep layers change the guess less often than shallow ones", "a model")


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Workload:
    file = write_pairs(tmp_path_factory.mktemp("pairs") / "pairs.jsonl")
    return offramp.load_workload(f"pairs:{file}#en,de")


@pytest.fixture(scope="module", params=["t5", "bart"])
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Model:
    folder = tmp_path_factory.mktemp("models") / request.param
    return offramp.load_model({"t5": write_t5, "bart": write_bart}[request.param](folder))


@pytest.fixture(scope="module")
def trace(model: Model, pairs: Workload) -> Trace:
    return offramp.trace(model, pairs, tokens=TOKENS)


def cut_at(model: Model, exit: int) -> Any:
    """transformers' own model with only so many decoder layers, loaded anew."""
    assert model.source is not None
    own = type(model.hf.inner).from_pretrained(model.source.folder, dtype=torch.float32).eval()
    name = "block" if hasattr(own.get_decoder(), "block") else "layers"
    setattr(own.get_decoder(), name, getattr(own.get_decoder(), name)[:exit])
    return own


def test_a_trace_is_what_transformers_says_with_its_decoder_cut_off(
    model: Model, pairs: Workload, trace: Trace
) -> None:
    documents = {document.id: document for document in pairs.documents}
    assert trace.token_count == TOKENS
    assert trace.position.min() == 1  # what the decoder begins with is no row
    for exit in trace.exits.tolist():
        own = cut_at(model, exit)
        for number, record in enumerate(trace.documents):
            rows = np.flatnonzero(trace.document == number)
            document = documents[record.id]
            source = model.tokenizer(document.given.text, return_tensors="pt")["input_ids"]  # type: ignore[union-attr]
            ids = torch.tensor([model.encode(document.text)])
            with torch.no_grad():
                logits = own(input_ids=source, decoder_input_ids=ids, use_cache=False).logits[0].float()
            place = trace.position[rows]
            assert (ids[0].numpy()[place] == trace.token[rows]).all()
            assert (logits.argmax(-1).numpy()[place] == trace.top1[rows, exit - 1]).all()
            nll = -logits.log_softmax(-1)[place, trace.next_token[rows]].numpy()
            np.testing.assert_allclose(nll, trace.nll[rows, exit - 1], rtol=1e-4, atol=1e-4)


def test_the_shape_of_a_trace_has_the_mean_length_of_what_was_read(
    model: Model, pairs: Workload, trace: Trace, tmp_path: Path
) -> None:
    documents = {document.id: document for document in pairs.documents}
    lengths = [
        len(model.tokenizer(documents[record.id].given.text)["input_ids"])  # type: ignore[union-attr]
        for record in trace.documents
    ]
    assert trace.shape.encoder is not None
    assert trace.shape.encoder.positions == pytest.approx(np.mean(lengths))
    offramp.trace(model, pairs, tokens=40, output=tmp_path / "trace")
    assert "cross" in json.loads((tmp_path / "trace" / "manifest.json").read_text())["shape"]["layers"][0]
    read = offramp.Trace.load(tmp_path / "trace")
    assert read.shape.encoder is not None
    assert read.shape.layers == model.shape.layers


@pytest.mark.parametrize(("policy", "kv"), RERUNS)
def test_a_rerun_is_forced_decoding_exit_for_exit(
    model: Model, pairs: Workload, trace: Trace, policy: str, kv: str
) -> None:
    assert_reruns_are_forced_decoding(model, pairs, trace, policy, kv)


def test_drafts_of_few_layers_give_the_full_models_answers(model: Model) -> None:
    own = cut_at(model, model.layers)
    for source in SOURCES:
        ids = model.tokenizer(source, return_tensors="pt")["input_ids"]
        expected = own.generate(ids, max_new_tokens=12, do_sample=False)[0, 1:].tolist()
        assert offramp.generate(model, source=source, max_new_tokens=12).tokens == expected
        drafted = offramp.generate(
            model, source=source, policy="static:exit=2", kv="speculate", max_new_tokens=12
        )
        assert drafted.tokens == expected


@pytest.mark.parametrize("policy", LEAVING)
def test_rows_of_a_batch_read_their_own_sources(model: Model, policy: str) -> None:
    together = offramp.generate(model, source=SOURCES, policy=policy, max_new_tokens=10, batching="rebatch")
    for source, row in zip(SOURCES, together, strict=True):
        alone = offramp.generate(model, source=source, policy=policy, max_new_tokens=10)
        assert (row.tokens, row.exits.tolist()) == (alone.tokens, alone.exits.tolist())


def test_answers_are_executed_and_judged_beside_their_own_source(model: Model, pairs: Workload) -> None:
    prompts = prompts_of(model, pairs, 4, new_tokens=8)
    assert [tuple(prompt) for prompt in prompts] == [(0,)] * 4
    assert len(set(map(given_of, prompts))) == 4
    executed = offramp.execute(model, prompts, "never", new_tokens=8)
    for prompt, execution in zip(prompts, executed, strict=True):
        given = given_of(prompt)
        assert given is not None
        assert list(execution.answer) == offramp.generate(model, source=given.text, max_new_tokens=8).tokens
        assert execution.loss == 0.0


def answer(running: PlainRunning, new_tokens: int) -> Sequence[Sequence[int]]:
    while running.count < new_tokens:
        running.step()
    return running.finish(0.0, 0.0).tokens


def test_decodings_that_take_turns_keep_to_their_sources(model: Model, pairs: Workload) -> None:
    prompts = prompts_of(model, pairs, 2, new_tokens=8)
    batches = batches_of(prompts, 1)
    assert [given_of(batch.given[0]) for batch in batches] == list(map(given_of, prompts))
    begun = [PlainRunning(model, batch, 8) for batch in batches]
    for running in begun:
        running.step()
    for prompt, running in zip(prompts, begun, strict=True):
        (expected,) = offramp.execute(model, [prompt], "never", new_tokens=8)
        whole = expected.answer
        assert tuple(answer(running, 8)[0])[: len(whole)] == whole


def test_what_cannot_be_is_said(model: Model, trace: Trace, pairs: Workload, tiny_model: Path) -> None:
    with pytest.raises(InputError, match="reads a source beside each text"):
        offramp.trace(model, ["a text"])
    with pytest.raises(InputError, match="begins with no prompt"):
        offramp.generate(model, "the", source="the cat")
    with pytest.raises(InputError, match="the source is empty"):
        offramp.generate(model, source=" ")
    text = offramp.load_model(tiny_model)
    with pytest.raises(InputError, match="it is not an encoder-decoder"):
        offramp.generate(text, source="the cat")
    with pytest.raises(InputError, match="it is not an encoder-decoder"):
        offramp.trace(text, pairs)
    other = offramp.workload_of(["a text"])
    with pytest.raises(InputError, match="are not those that were traced"):
        offramp.rerun(model, trace, "static:exit=2", workload=other)
    mixed = [
        GivenIds.of([0, 5], given_of(pairs.documents[0])),
        GivenIds.of([0], given_of(pairs.documents[1])),
    ]
    result = offramp.execute(model, mixed, "never", new_tokens=4)
    assert [len(execution.answer) for execution in result] == [4, 4]
