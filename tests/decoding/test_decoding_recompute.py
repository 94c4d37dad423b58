"""Layers that run later than their token: deep tokens are the full model's, and replay charges just that."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import pytest
import torch
from strategy_cases import (
    Scripted,
    agreeable,
    build_windowed,
    counted_layers,
    decode,
    ids_of,
    llama,
    number_text,
    tiny_model,
    trace_of_new,
)

from offramp.decoding.engine.build import engine_of
from offramp.decoding.generation.early_exit import EarlyExit
from offramp.decoding.options import DecodingOptions
from offramp.models.model import Model
from offramp.policies.decisions import replay_decisions
from offramp.policies.grammar import parse_policy
from offramp.policies.kv import STRATEGIES, PolicyRun
from offramp.policies.policy import ExitPolicy

LAYERS, PROMPT, NEW = 5, 6, 18
SCRIPT = Scripted((1, 4, 5, 2, 2, 3, 1, 5, 5, 4, 1, 1, 1))


@functools.cache
def model() -> Model:
    return tiny_model(llama(num_hidden_layers=LAYERS), head_scale=3.0, change=agreeable)


@functools.cache
def family(name: str) -> Any:
    return build_windowed(name)


def scores_of(
    hf: Any, ids: torch.Tensor, mask: torch.Tensor, policy: ExitPolicy, forced: torch.Tensor
) -> tuple[torch.Tensor, Any]:
    """Logits that each new token came from [batch, new, vocabulary], and the result."""
    early = EarlyExit(DecodingOptions(policy, "recompute"), forced=forced)
    out = hf.generate(
        ids,
        attention_mask=mask,
        max_new_tokens=forced.shape[1],
        do_sample=False,
        pad_token_id=0,
        custom_generate=early,
        return_dict_in_generate=True,
        output_scores=True,
    )
    return torch.stack(out.scores, 1), early.last


def exits_of_full_model(hf: Any, ids: torch.Tensor) -> torch.Tensor:
    """Logits of every exit from one full forward without a cache: [exits, positions, vocabulary]."""
    stack = engine_of(hf).stack
    states: dict[int, torch.Tensor] = {}
    stack.capture(ids, lambda index, before, after: states.__setitem__(index, after.clone()))
    return torch.stack([stack.readout(states[index])[0].float() for index in range(len(stack))])


# Learned positions, ALiBi, windows that slide, latent attention, state spaces and a hybrid of them.
FAMILIES = ("llama", "gpt2", "bloom", "mistral", "deepseek_v3", "mamba2", "qwen3_next")


@pytest.mark.parametrize("name", FAMILIES)
def test_every_exit_says_what_it_says_in_the_full_model(name: str) -> None:
    hf = family(name)
    assert getattr(hf.config, "sliding_window", None) in (None, 6)
    layers, new = engine_of(hf).layers, 14
    script = Scripted((1, layers - 1, layers, 2, 1, layers, layers, 1, 2, 1))
    text = ids_of(hf, 9 + new, seed=4)
    ids, forced = text[:, :9], text[:, 9:]
    scores, result = scores_of(hf, ids, torch.ones_like(ids), script, forced)
    exits = result.rows[0].exits
    assert exits.tolist() == [layers, *(script.exits * 2)[: new - 1]]
    full = exits_of_full_model(hf, text)[:, 8:-1]
    wanted = torch.stack([full[exit - 1, place] for place, exit in enumerate(exits)])
    scale = max(1.0, float(wanted.abs().max()))
    assert float((scores[0] - wanted).abs().max()) < 1e-5 * scale
    if name == "llama":
        deep = torch.from_numpy(exits == layers)
        assert float((scores[0] - wanted)[deep].abs().max()) < 2e-6 * scale


@pytest.mark.parametrize(
    "policy",
    [
        SCRIPT,
        *map(
            parse_policy,
            (
                "static:exit=2",
                "never",
                "threshold:signal=hidden_cosine,value=0.5,exits=all",
                "patience:times=2,exits=1+2+3+4",
                "dynamic:signal=margin,value=0.1,exits=2+4,complexity=running_entropy,slope=0.1,centre=3.5",
                "bandit:signal=restricted_margin,value=0.3,exits=2+4",
            ),
        ),
    ],
    ids=lambda policy: str(policy)[:25],
)
def test_forced_exits_and_usage_are_those_of_replay(policy: ExitPolicy) -> None:
    ids = number_text(9, PROMPT + NEW)
    traced = trace_of_new(model(), ids, PROMPT)
    decisions = replay_decisions(policy, traced)
    steps = np.arange(traced.token_count)
    run = PolicyRun(traced, policy, decisions, steps, 4)
    with counted_layers(model().hf) as counts:
        found = decode(model().hf, torch.tensor([ids[:PROMPT]]), policy, "recompute", forced=ids[PROMPT:])
    assert found.rows[0].exits[1:].tolist() == decisions.exits.tolist()
    assert found.rows[0].chosen[1:] == traced.top1[steps, found.rows[0].exits[1:] - 1].tolist()
    assert found.usage == STRATEGIES["recompute"].charge(run)
    assert sum(counts.values()) == found.rows[0].layers_executed


def test_a_hybrid_catches_up_one_position_at_a_time() -> None:
    hf = family("jamba")
    engine = engine_of(hf)
    assert 0 < len(engine.recurrent) < engine.layers
    script = Scripted((1, 2, 1, engine.layers))
    result = decode(hf, ids_of(hf, PROMPT), script, "recompute", new=13)
    rows = {
        moves: {
            item.rows
            for item in result.usage
            if item.part == "layers" and engine.kept[item.place - 1].recurrent is moves
        }
        for moves in (True, False)
    }
    assert rows[True] == {1}
    assert max(rows[False]) == 4


def test_a_padded_batch_waits_in_lockstep_and_stays_exact() -> None:
    hf = model().hf
    prompts = [number_text(30 + row, 2 + row) for row in range(8)]
    texts = [number_text(60 + row, NEW) for row in range(8)]
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    with counted_layers(hf) as counts:
        scores, result = scores_of(hf, ids, mask, SCRIPT, torch.tensor(texts))
    assert sum(counts.values()) == sum(row.layers_executed for row in result.rows)
    for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
        exits = result.rows[row].exits
        full = exits_of_full_model(hf, torch.tensor([prompt + text]))[:, len(prompt) - 1 : -1]
        wanted = torch.stack([full[exit - 1, place] for place, exit in enumerate(exits)])
        assert float((scores[row] - wanted).abs().max()) < 2e-5
