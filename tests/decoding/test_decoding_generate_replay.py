"""Decoding against replay: the same decisions on the same text, and the same items on the same exits."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from generation_cases import POLICY, PROMPTS, generate_batch, tiny_llama
from map_cases import maps_for
from reading_cases import random_heads

import offramp
from offramp.costs.machine_registry import find_machine
from offramp.decoding.generation.prompts import prompt_batch
from offramp.errors import InputError, PolicyError
from offramp.heads.exit_heads import ExitHeads
from offramp.policies.cost_breakdown import Usage, lines_of
from offramp.policies.decisions import Decisions, probed_facts
from offramp.policies.kv import maps_of
from offramp.policies.prices import prices_at
from offramp.policies.steps import count_steps
from offramp.tracing.trace import with_maps
from offramp.workloads.workload import Document, Workload
from tiny_models import LAYERS, write_documents

NEW = 10
PATIENCE = "patience:times=1,exits=1+2+3"
DYNAMIC = "dynamic:signal=margin,value=0.01,exits=1+2+3,complexity={},slope=0.01,centre=5.5"


@functools.cache
def trace() -> offramp.Trace:
    path = write_documents(Path(tempfile.mkdtemp()) / "documents.jsonl", documents=4, words=12)
    return offramp.trace(tiny_llama(), f"jsonl:{path}#text", tokens=80, exits="all")


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


@functools.cache
def maps() -> ExitHeads:
    return maps_for(tiny_llama(), rank=3)


@pytest.mark.parametrize("policy", [POLICY, PATIENCE, "never"])
@pytest.mark.parametrize(("batch", "batching"), [(1, "lockstep"), (4, "lockstep"), (4, "rebatch")])
@pytest.mark.parametrize("kv", ["propagate", "mapped"])
def test_what_runs_is_what_replay_charges(policy: str, batch: int, batching: str, kv: str) -> None:
    model = tiny_llama()
    prompts = prompt_batch(model, list(PROMPTS[:batch]), chat=False)
    found = generate_batch(
        model,
        prompts.ids,
        prompts.mask,
        policy=policy,
        batching=batching,
        max_new_tokens=NEW,
        kv=kv,
        heads=maps(),
    )
    exits = np.concatenate([row.exits[1:] for row in found.rows])
    needs = probed_facts(offramp.parse_policy(policy), LAYERS)
    steps = np.tile(np.arange(NEW - 1), batch)
    mapped = kv == "mapped"
    assert found.usage == count_steps(Decisions(exits, needs), steps, LAYERS, repair=True, maps=mapped)
    assert found.steps == NEW - 1


@pytest.mark.parametrize("machine", [None, "h100"])
def test_a_forced_generation_costs_what_its_replay_is_charged(machine: str | None) -> None:
    """The exits that decoding took, on a trace that knows the maps' ranks: item by item, and in price."""
    model, policy = tiny_llama(), "static:exit=1"
    traced = with_maps(trace(), maps())
    result = offramp.replay(traced, policy, machine=machine, kv="mapped")
    assert np.array_equal(result.exits, offramp.replay(traced, policy).exits)
    assert result.agreement == offramp.replay(traced, policy).agreement
    usage: Usage = Usage()
    for document in np.unique(traced.document):
        rows = np.flatnonzero(traced.document == document)
        text = [*traced.token[rows].tolist(), int(traced.next_token[rows[-1]])]
        forced = torch.tensor([text])
        ids = torch.tensor([[0]])
        usage += generate_batch(
            model,
            ids,
            policy=policy,
            kv="mapped",
            heads=maps(),
            force_tokens=forced,
            max_new_tokens=len(text),
        ).usage
    charged = maps_of(traced)
    at = prices_at(traced, "bytes", charged)
    if machine is not None:
        at = prices_at(traced, find_machine(machine), maps=charged)
    lines = lines_of(usage, at)
    assert [(line.part, line.places, line.count, line.price) for line in lines] == [
        (line.part, line.places, line.count, line.price) for line in result.breakdown.lines
    ]
    maps_paid = [line for line in lines if line.part == "K,V map"]
    assert [(line.where, line.count) for line in maps_paid] == [("exit 1", traced.token_count)]
    propagated = offramp.replay(traced, policy, machine=machine)
    assert result.breakdown.total == pytest.approx(propagated.breakdown.total + maps_paid[0].total)


def test_a_replay_without_maps_names_the_command_that_fits_them() -> None:
    with pytest.raises(PolicyError, match="hold no K,V maps") as caught:
        offramp.replay(trace(), POLICY, kv="mapped")
    assert "offramp heads fit MODEL --workload W --kv-maps" in caught.value.fix
    few = with_maps(trace(), maps_for(tiny_llama(), [2]))
    with pytest.raises(PolicyError, match="exit 1, which has no K,V maps; they start at: 2"):
        offramp.replay(few, POLICY, kv="mapped")
    offramp.replay(few, "static:exit=2", kv="mapped")
    offramp.replay(few, "static:exit=3", kv="mapped")
    assert offramp.replay(few, POLICY).breakdown == offramp.replay(trace(), POLICY).breakdown


def test_a_trace_takes_maps_that_read_its_exits_alike_only() -> None:
    lens = random_heads(tiny_llama(), [1, 2, 3], facts=())
    with pytest.raises(InputError, match="read in another way"):
        with_maps(trace(), dataclasses.replace(lens, kv_maps=maps().kv_maps))
    with pytest.raises(InputError, match="hold no K,V maps"):
        with_maps(trace(), lens)
    with pytest.raises(InputError, match="fitted on"):
        with_maps(trace(), dataclasses.replace(maps(), model={**maps().model, "fingerprint": "b" * 64}))
    assert trace().request["heads"] is None


def test_monotone_writes_nothing_for_skipped_layers() -> None:
    model = tiny_llama()
    policy = f"monotone:policy=[{POLICY}]"
    prompts = prompt_batch(model, [PROMPTS[1]], chat=False)
    found = generate_batch(model, prompts.ids, policy=policy, kv="monotone", max_new_tokens=NEW)
    exits = found.rows[0].exits[1:]
    assert exits[-1] < LAYERS
    assert (np.diff(exits) <= 0).all()
    needs = probed_facts(offramp.parse_policy(policy), LAYERS)
    assert found.usage == count_steps(Decisions(exits, needs), np.arange(NEW - 1), LAYERS, repair=False)
