"""Speculation gives greedy decoding's tokens on every kind of family: what is cached, it can take back."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from strategy_cases import (
    Scripted,
    build_windowed,
    decode,
    engine_of,
    greedy,
    ids_of,
    number_text,
    tiny_model,
    trace_of_new,
)

import offramp
from offramp.models.model import Model
from offramp.policies.decisions import replay_decisions
from offramp.policies.kv_cost import STRATEGIES, Run

# Dense, learned positions, ALiBi, windows that slide, soft caps, mixtures of experts, latent attention,
# sinks, state spaces and hybrids of them with attention.
FAMILIES = (
    "llama",
    "gpt2",
    "bloom",
    "mistral",
    "gemma2",
    "gemma3_text",
    "mixtral",
    "deepseek_v3",
    "gpt_oss",
    "mamba",
    "mamba2",
    "jamba",
    "falcon_h1",
    "qwen3_next",
    "lfm2",
)
PROMPT, NEW = 9, 16


# Of the layers' weights: so that some drafts are right and others wrong.
SCALES = {"gpt2": 2.0, "bloom": 12.0, "mamba": 4.0, "lfm2": 4.0}


@functools.cache
def family(name: str) -> Any:
    hf = build_windowed(name)
    stack = engine_of(hf).stack
    with torch.no_grad():
        for layer in stack.layers if name in SCALES else stack.layers[1:]:
            for parameter in layer.parameters():
                if parameter.dim() > 1:
                    parameter.mul_(SCALES.get(name, 0.7))
    return hf


@pytest.mark.parametrize("name", FAMILIES)
def test_output_is_greedy(name: str) -> None:
    hf = family(name)
    engine = engine_of(hf)
    assert engine.abilities.reason("speculate") is None
    layers, ids = engine.layers, ids_of(hf, PROMPT)
    tokens = greedy(hf, ids, NEW)[0].tolist()
    mixed = Scripted((layers - 1, 1, layers - 1, layers, 2, layers - 1, layers - 1))
    rejected = accepted = 0
    for policy, draft_length in ((mixed, 4), (mixed, 2), (f"static:exit={layers - 1}", 3)):
        result = decode(hf, ids, policy, "speculate", new=NEW, draft_length=draft_length)
        assert result.rows[0].tokens == tokens
        rejected += result.drafted - result.accepted
        accepted += result.accepted
    assert accepted > 0
    assert rejected > 0


@pytest.mark.parametrize("name", ["mistral", "jamba", "falcon_h1"])
def test_a_padded_batch_gives_each_row_its_own_text(name: str) -> None:
    hf = family(name)
    if engine_of(hf).abilities.reason("lockstep") is not None:
        pytest.skip(f"{name} has no exact padded batches: {engine_of(hf).abilities.reason('lockstep')}")
    prompts = [ids_of(hf, 6 + row, seed=row + 1)[0].tolist() for row in range(3)]
    ids = torch.tensor([[0] * (8 - len(prompt)) + prompt for prompt in prompts])
    mask = (torch.arange(8)[None] >= torch.tensor([[8 - len(prompt)] for prompt in prompts])).long()
    layers = engine_of(hf).layers
    result = decode(hf, ids, f"static:exit={layers - 1}", "speculate", new=10, mask=mask)
    for row, prompt in zip(result.rows, prompts, strict=True):
        assert row.tokens == greedy(hf, torch.tensor([prompt]), 10)[0].tolist()


@pytest.mark.parametrize("name", ["jamba", "gpt2"])
def test_forced_exits_and_usage_are_those_of_replay(name: str) -> None:
    model = tiny_model(family(name))
    layers, ids = model.layers, number_text(3, PROMPT + NEW)
    policy = Scripted((layers - 1, 1, layers - 1, layers, 2, 1, layers - 1))
    traced = trace_of_new(model, ids, PROMPT)
    run = Run(traced, policy, replay_decisions(policy, traced), np.arange(traced.token_count), 3)
    found = decode(
        model.hf, torch.tensor([ids[:PROMPT]]), policy, "speculate", forced=ids[PROMPT:], draft_length=3
    )
    assert found.rows[0].exits[1:].tolist() == run.decisions.exits.tolist()
    assert found.usage == STRATEGIES["speculate"].count(run)
    assert found.accepted < found.drafted


@pytest.mark.real_model
def test_the_bundled_model_speculates_as_it_decodes(smollm2: Model) -> None:
    model = smollm2
    prompt = "The capital of France is"
    plain = offramp.generate(model, prompt, max_new_tokens=16)
    for policy, draft_length in (
        ("static:exit=27", 3),
        ("threshold:signal=max_prob,value=0.6,exits=24", "auto"),
    ):
        found = offramp.generate(
            model, prompt, policy=policy, kv="speculate", draft_length=draft_length, max_new_tokens=16
        )
        assert found.tokens == plain.tokens
    assert found.text == plain.text
