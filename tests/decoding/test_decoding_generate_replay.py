"""Decoding against replay: the same decisions on the same text, and the same items on the same exits."""

from __future__ import annotations

import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
from generation_cases import POLICY, PROMPTS, tiny_llama

import offramp
from offramp.decoding.generation.generate import generate_batch
from offramp.decoding.generation.prompts import prompt_batch
from offramp.policies.batching import count_steps
from offramp.policies.walk import Walk, probed_facts
from offramp.workloads.workload import Document, Workload
from tiny_models import LAYERS, write_documents

NEW = 10
PATIENCE = "patience:times=1,exits=1+2+3"
ADAPTIVE = "adaptive:signal=max_prob,target=0.05,warmup=2,exits=1+2+3"
DYNAMIC = "dynamic:signal=margin,value=0.01,exits=1+2+3,complexity={},slope=0.01,centre=5.5"


@functools.cache
def trace() -> offramp.Trace:
    path = write_documents(Path(tempfile.mkdtemp()) / "documents.jsonl", documents=4, words=12)
    return offramp.trace(tiny_llama(), f"jsonl:{path}#text", tokens=80, exits="all")


@pytest.mark.parametrize("kv", ["recompute", "speculate"])
@pytest.mark.parametrize(
    "policy", [POLICY, PATIENCE, ADAPTIVE, DYNAMIC.format("running_entropy"), "static:exit=2"]
)
def test_forced_exits_are_those_of_replay(policy: str, kv: str) -> None:
    """Every token of every document, fed after the same BOS; the first new token is no row of a trace."""
    model, traced = tiny_llama(), trace()
    expected = offramp.replay(traced, policy).exits
    assert policy.startswith("static") or len(set(expected.tolist())) > 2
    for document in np.unique(traced.document):
        rows = np.flatnonzero(traced.document == document)
        assert traced.position[rows[0]] == 1
        text = [*traced.token[rows].tolist(), int(traced.next_token[rows[-1]])]
        found = offramp.generate(model, [[0]], policy=policy, kv=kv, force_tokens=[text])[0]
        assert found.tokens == text
        assert found.exits[0] == LAYERS
        assert found.exits[1:].tolist() == expected[rows].tolist()


def test_a_prompts_entropy_is_that_of_the_trace() -> None:
    """Prompts of different lengths move the threshold; answers are traced as the model gave them."""
    model, policy = tiny_llama(), DYNAMIC.format("prompt_entropy")
    documents = tuple(
        Document(str(number), text) for number, text in enumerate((*PROMPTS, " ".join(PROMPTS * 2)))
    )
    work = Workload("prompts", "generation", documents, licence="none", source="a test")
    traced = offramp.trace(model, work, tokens=50, document_tokens=10, signals=("prompt_entropy",))
    expected = offramp.replay(traced, policy).exits
    assert len(set(traced.document_fact("prompt_entropy").tolist())) == len(documents)
    prompts = prompt_batch(model, [document.text for document in documents], chat=False)
    forced = []
    for place in range(len(documents)):
        rows = np.flatnonzero(traced.document == place)
        assert traced.position[rows[0]] == int(prompts.mask[place].sum())
        forced.append([*traced.token[rows].tolist(), int(traced.next_token[rows[-1]])][:9])
    together = offramp.generate(
        model, [document.text for document in documents], policy=policy, force_tokens=forced, kv="recompute"
    )
    alone = [
        offramp.generate(model, document.text, policy=policy, force_tokens=text, kv="recompute")
        for document, text in zip(documents, forced, strict=True)
    ]
    own = np.stack([expected[traced.document == place][:8] for place in range(len(documents))])
    assert np.array_equal(np.stack([row.exits[1:] for row in alone]), own)
    assert all(np.array_equal(row.exits[1:], own.max(0)) for row in together)


def test_forced_choices_are_the_traced_tokens() -> None:
    model, traced = tiny_llama(), trace()
    rows = np.flatnonzero(traced.document == traced.document[0])
    text = [*traced.token[rows].tolist(), 5]
    found = offramp.generate(model, [[0]], policy=POLICY, kv="recompute", force_tokens=[text])[0]
    assert found.chosen[1:] == traced.top1[rows, found.exits[1:] - 1].tolist()


@pytest.mark.parametrize("policy", [POLICY, PATIENCE, "static:exit=3", "never"])
@pytest.mark.parametrize(("batch", "batching"), [(1, "lockstep"), (4, "lockstep"), (4, "rebatch")])
def test_what_runs_is_what_replay_charges(policy: str, batch: int, batching: str) -> None:
    model = tiny_llama()
    prompts = prompt_batch(model, list(PROMPTS[:batch]), chat=False)
    found = generate_batch(
        model, prompts.ids, prompts.mask, policy=policy, batching=batching, max_new_tokens=NEW
    )
    exits = np.concatenate([row.exits[1:] for row in found.rows])
    needs = probed_facts(offramp.parse_policy(policy), LAYERS)
    steps = np.tile(np.arange(NEW - 1), batch)
    assert found.usage == count_steps(Walk(exits, needs), steps, LAYERS, repair=True)
    assert found.steps == NEW - 1


def test_monotone_writes_nothing_for_skipped_layers() -> None:
    model = tiny_llama()
    policy = f"monotone:policy=[{POLICY}]"
    prompts = prompt_batch(model, [PROMPTS[1]], chat=False)
    found = generate_batch(model, prompts.ids, policy=policy, kv="monotone", max_new_tokens=NEW)
    exits = found.rows[0].exits[1:]
    assert exits[-1] < LAYERS
    assert (np.diff(exits) <= 0).all()
    needs = probed_facts(offramp.parse_policy(policy), LAYERS)
    assert found.usage == count_steps(Walk(exits, needs), np.arange(NEW - 1), LAYERS, repair=False)
