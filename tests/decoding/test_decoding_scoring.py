"""Scored continuations: every token's probability comes from the exit that the policy chose for it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from generation_cases import POLICY, counted_layers, tiny_llama
from harness_cases import lensed, logprobs_of, propagated
from reading_cases import random_heads
from strategy_cases import Scripted, build_windowed, tiny_model
from transformers import LogitsProcessorList

from offramp.decoding.generation.generate import generate_batch
from offramp.decoding.generation.loop import Scorer
from offramp.decoding.options import DecodingOptions
from offramp.errors import InputError, OfframpError, PolicyError
from offramp.policies.grammar import parse_policy

TEXT = "the cat sat on the mat and looked at the rain, and a model reads one token"


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return tiny_llama().encode(TEXT)


def scorer(policy: Any, kv: str = "propagate", model: Any = None) -> Scorer:
    policy = parse_policy(policy) if isinstance(policy, str) else policy
    return Scorer(tiny_llama() if model is None else model, DecodingOptions(policy, kv))


@pytest.mark.parametrize("split", [1, 7])
@pytest.mark.parametrize("policy", ["static:exit=3", POLICY])
@pytest.mark.parametrize(("kv", "reference"), [("propagate", propagated), ("recompute", lensed)])
def test_probabilities_are_those_of_the_exits(
    ids: list[int], policy: str, split: int, kv: str, reference: Any
) -> None:
    scored = scorer(policy, kv).score(ids[:split], ids[split:])
    expected = reference(tiny_llama(), ids[:split], ids[split:], scored.exits.tolist())
    assert np.allclose(scored.logprobs, expected, atol=1e-5)
    full = logprobs_of(full_logits(tiny_llama(), ids)[split - 1 :], ids[split:])
    assert np.abs(scored.logprobs - full).max() > 0.1
    if policy.startswith("static"):
        assert set(scored.exits.tolist()) == {int(policy[-1])}


@pytest.mark.parametrize("kv", ["propagate", "recompute", "monotone", "speculate"])
def test_a_policy_that_never_exits_gives_the_full_model(ids: list[int], kv: str) -> None:
    scored = scorer("never", kv).score(ids[:4], ids[4:])
    logits = full_logits(tiny_llama(), ids)[3:]
    assert np.allclose(scored.logprobs, logprobs_of(logits, ids[4:]), atol=1e-5)
    assert scored.chosen.tolist() == logits.argmax(-1).tolist()
    assert scored.logprob == pytest.approx(float(scored.logprobs.sum()))


def test_speculation_gives_the_full_model_whatever_the_drafts(ids: list[int]) -> None:
    scored = scorer("static:exit=1", "speculate").score(ids[:4], ids[4:])
    assert np.allclose(scored.logprobs, logprobs_of(full_logits(tiny_llama(), ids)[3:], ids[4:]), atol=1e-5)
    assert scored.exits.max() == 1
    assert scored.layers_executed >= 4 * len(ids[4:])


@pytest.mark.parametrize("kv", ["propagate", "recompute"])
@pytest.mark.parametrize("split", [1, 6])
def test_layers_are_counted_as_hooks_count_them(ids: list[int], kv: str, split: int) -> None:
    model, one = tiny_llama(), scorer(POLICY, kv)
    with counted_layers(model.hf) as counts:
        scored = one.score(ids[:split], ids[split:])
    assert counts.total() == scored.layers_executed + (split - 1) * model.layers
    if kv == "propagate":
        assert scored.layers_executed == scored.exits.sum()


def test_two_loops_come_to_the_same_likelihood(ids: list[int]) -> None:
    # A generation with forced tokens, whose first token comes out of the prompt at full depth.
    model = tiny_llama()
    heads = random_heads(model, [1, 2, 3], facts=())
    options = DecodingOptions(parse_policy(POLICY), "recompute", heads)
    scored = Scorer(model, options).score(ids[:6], ids[6:])
    heard: list[float] = []

    def listen(so_far: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        heard.append(float(scores[0].log_softmax(-1)[ids[so_far.shape[1]]]))
        return scores

    run = generate_batch(
        model,
        torch.tensor([ids[:5]]),
        torch.ones(1, 5, dtype=torch.long),
        replace(options, new_tokens=len(ids) - 5),
        force_tokens=torch.tensor([ids[5:]]),
        logits_processor=LogitsProcessorList([listen]),
        repetition_penalty=1.0,
    )
    assert np.allclose(scored.logprobs, heard[1:], atol=1e-4)
    assert scored.exits.tolist() == run.rows[0].exits[1:].tolist()
    bare = Scorer(model, DecodingOptions(parse_policy(POLICY), "recompute")).score(ids[:6], ids[6:])
    assert abs(scored.logprob - bare.logprob) > 1.0


def test_a_scorer_forgets_the_text_before(ids: list[int]) -> None:
    one = scorer("patience:times=2,exits=1+2+3")
    first = one.score(ids[:3], ids[3:])
    one.score(ids[5:8], ids[8:20])
    again = one.score(ids[:3], ids[3:])
    assert again.logprobs.tolist() == first.logprobs.tolist()
    assert again.exits.tolist() == first.exits.tolist()


@pytest.mark.parametrize("family", ["gemma3_text", "jamba"])
@pytest.mark.parametrize("split", [1, 4])
def test_families_start_from_nothing_too(family: str, split: int) -> None:
    model = tiny_model(build_windowed(family))
    tokens = torch.randint(3, 59, (14,), generator=torch.Generator().manual_seed(1)).tolist()
    scored = scorer("never", model=model).score(tokens[:split], tokens[split:])
    expected = logprobs_of(full_logits(model, tokens)[split - 1 :], tokens[split:])
    assert np.allclose(scored.logprobs, expected, atol=1e-4)
    exits = Scripted((2, 1, 4))
    scored = scorer(exits, model=model).score(tokens[:split], tokens[split:])
    own = scored.exits.tolist()
    assert own == [(2, 1, 4)[place % 3] for place in range(len(own))]
    assert np.allclose(scored.logprobs, propagated(model, tokens[:split], tokens[split:], own), atol=1e-4)


def test_what_cannot_be_scored_is_refused(ids: list[int]) -> None:
    with pytest.raises(InputError, match="at least one token each"):
        scorer("never").score([], ids)
    with pytest.raises(InputError, match="at least one token each"):
        scorer("never").score(ids, [])
    with pytest.raises(InputError, match="none of the model's"):
        scorer("never").score(ids, [10**6])
    with pytest.raises(PolicyError, match="short list"):
        scorer("shortlist:policy=[static:exit=2]")
    with pytest.raises(PolicyError, match="beyond the model"):
        scorer("static:exit=9")


def test_a_policy_that_reads_the_prompt_needs_one(ids: list[int]) -> None:
    one = scorer("dynamic:signal=margin,value=0.3,exits=1+2+3,complexity=prompt_entropy,slope=1.0,centre=2.0")
    assert len(one.score(ids[:5], ids[5:9]).exits) == 4
    with pytest.raises(PolicyError, match="nothing comes before this context's only token"):
        one.score(ids[:1], ids[1:5])


def test_a_number_that_is_not_finite_is_named(ids: list[int]) -> None:
    model = tiny_llama()
    weight, poisoned = model.hf.model.embed_tokens.weight, ids[6]
    before = weight[poisoned].clone()
    with torch.no_grad():
        weight[poisoned] = torch.inf
    try:
        with pytest.raises(OfframpError, match="not finite"):
            scorer("static:exit=2").score(ids[:3], ids[3:])
    finally:
        with torch.no_grad():
            weight[poisoned] = before


@torch.no_grad()
def full_logits(model: Any, ids: list[int]) -> torch.Tensor:
    """Of the model's own forward: [length - 1, vocabulary]."""
    logits: torch.Tensor = model.hf(input_ids=torch.tensor([ids[:-1]]), use_cache=False).logits[0]
    return logits
