"""Decoding in steps: the same tokens, exits and counts as at a stretch, whatever decodes in between."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch
from bench_cases import family_model
from generation_cases import POLICY, generate_batch, tiny_llama

from offramp.decoding.generation.prompts import PromptBatch
from offramp.decoding.options import DecodingOptions
from offramp.decoding.strategies.registry import STRATEGIES
from offramp.models.model import Model
from offramp.policies.grammar import parse_policy
from offramp.timing.decoder import (
    LoopRunning,
    PlainRunning,
    Running,
    batches_of,
    generate,
    own_config,
    plain_config,
)

PROMPTS = [[5, 6, 7, 8], [9, 10, 11, 12, 13, 14], [1, 2, 3, 4, 5, 6]]
NEW_TOKENS = 12


def whole(model: Model, prompts: PromptBatch, options: DecodingOptions) -> Any:
    with own_config(model.hf, plain_config(NEW_TOKENS)):
        return generate_batch(
            model, prompts.ids, prompts.mask, policy=options.policy, kv=options.kv,
            batching=options.batching, draft_length=options.draft_length, max_new_tokens=NEW_TOKENS,
            eos_token_id=None,
        )  # fmt: skip


def taken_in_turns(*started: Running) -> list[Any]:
    """One step of each after the other, to the end."""
    while any(running.count < NEW_TOKENS for running in started):
        for running in started:
            if running.count < NEW_TOKENS:
                running.step()
    return [running.finish(0.5, 2.0) for running in started]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("kv", [name for name in STRATEGIES if name != "mapped"])
def test_every_strategy_in_steps_is_what_it_is_at_a_stretch(kv: str, batch: int) -> None:
    model = tiny_llama()
    policy = parse_policy("static:exit=2" if kv == "monotone" else POLICY)
    options = [DecodingOptions(policy, kv, draft_length=3, new_tokens=NEW_TOKENS)]
    if batch > 1 and kv == "propagate":
        options.append(DecodingOptions(policy, kv, batching="rebatch", new_tokens=NEW_TOKENS))
    prompts = batches_of(PROMPTS[:batch], batch)[0]
    started = [LoopRunning(model, prompts, one) for one in options for _ in range(2)]
    found = taken_in_turns(*started)
    for one, decoded in zip([one for one in options for _ in range(2)], found, strict=True):
        expected = whole(model, prompts, one)
        assert decoded.tokens == tuple(tuple(row.tokens) for row in expected.rows)
        assert decoded.claimed_layers == expected.layers_executed
        assert decoded.record.usage == expected.usage
        assert (decoded.record.drafted, decoded.record.steps) == (expected.drafted, expected.steps)
        for row, same in zip(decoded.record.rows, expected.rows, strict=True):
            np.testing.assert_array_equal(row.exits, same.exits)
        assert decoded.seconds_per_token == pytest.approx(2.0 / (batch * (NEW_TOKENS - 1)))


def test_the_time_between_two_steps_is_nobodys(monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count()
    options = DecodingOptions(parse_policy("static:exit=2"), new_tokens=4)
    running = LoopRunning(tiny_llama(), batches_of(PROMPTS[:1], 1)[0], options)
    loop = running._loop
    monkeypatch.setattr("offramp.decoding.generation.loop.time.perf_counter", lambda: float(next(now)))
    before = loop.seconds
    while running.count < 4:
        next(now), next(now)  # others decode
        running.step()
    record = running.finish(0.0, 0.0).record
    # Each step reads the clock when it begins and when it ends.
    assert record.seconds == before + 1.0 * 3
    assert record.first_token_seconds == loop.first_seconds > 0.0


@pytest.mark.parametrize(
    ("family", "batch", "static"),
    [
        *itertools.product(["llama", "mistral"], [1, 3], [False, True]),
        ("mamba", 1, False),  # transformers has no static cache for it, and does not pad it
    ],
)
def test_plain_steps_are_what_generate_does(family: str, batch: int, static: bool) -> None:
    model = tiny_llama() if family == "llama" else family_model(family)
    keywords = {"cache_implementation": "static"} if static else {}
    prompts = batches_of(PROMPTS[:batch], batch)[0]
    expected = generate(model, prompts, NEW_TOKENS, **keywords)
    first, second = (PlainRunning(model, prompts, NEW_TOKENS, **keywords) for _ in range(2))
    options = DecodingOptions(parse_policy("never"), new_tokens=NEW_TOKENS)
    found = taken_in_turns(first, LoopRunning(model, prompts, options), second)
    assert {one.tokens for one in found} == {expected.tokens}
    assert {one.claimed_layers for one in found} == {
        model.layers * len(prompts.ids) * (prompts.ids.shape[1] + NEW_TOKENS - 1)
    }


def test_the_models_own_config_is_back_between_two_steps() -> None:
    model = tiny_llama()
    config, names = model.hf.generation_config, set(model.hf.__dict__)
    PlainRunning(model, batches_of(PROMPTS[:1], 1)[0], NEW_TOKENS, cache_implementation="static").step()
    options = DecodingOptions(parse_policy("never"), new_tokens=NEW_TOKENS)
    LoopRunning(model, batches_of(PROMPTS[:1], 1)[0], options).step()
    assert model.hf.generation_config is config
    assert set(model.hf.__dict__) == names
    assert torch.is_grad_enabled()
