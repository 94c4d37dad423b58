"""Drafts copied from the text beside exits: tokens are what their exits say, and all that ran is counted."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from strategy_cases import (
    Scripted,
    agreeable,
    build_windowed,
    counted_layers,
    decode,
    engine_of,
    greedy,
    ids_of,
    llama,
    tiny_model,
)

import offramp
from offramp.decoding.options import DecodingOptions
from offramp.decoding.strategies.lookup import REPEATED, continuation
from offramp.errors import InputError, PolicyError
from offramp.models.model import Model
from offramp.policies.grammar import parse_policy
from offramp.policies.policy import ExitPolicy
from offramp.policies.rules.short_list import with_short_head
from offramp.timing.bench import bench

LAYERS, NEW = 5, 24
REPEATING = [7, 8, 9, 7, 8, 9, 7, 8, 9, 7, 8]


@functools.cache
def model() -> Model:
    return tiny_model(llama(num_hidden_layers=LAYERS), head_scale=3.0, change=agreeable)


def slow_continuation(text: Sequence[int], most: int) -> list[int]:
    """Token by token: what followed the longest end of the text that stands in it before, last of all."""
    grown = list(text)
    for size in REPEATED:
        places = [
            place for place in range(len(text) - size) if list(text[place : place + size]) == text[-size:]
        ]
        if places:
            follows = places[-1] + size
            for offset in range(most):
                grown.append(grown[follows + offset])
            break
    return grown[len(text) :]


@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 8))
def test_what_followed_is_copied(text: list[int], most: int) -> None:
    assert continuation(text, most) == slow_continuation(text, most)


def test_a_text_that_repeats_itself_goes_on_to() -> None:
    assert continuation([1, 2, 3, 1, 2], 5) == [3, 1, 2, 3, 1]
    assert continuation([5, 5], 3) == [5, 5, 5]
    assert continuation([1, 2, 3], 3) == continuation([], 3) == continuation([4], 3) == []


def said_at(ids: Sequence[int], exit: int) -> int:
    """What an exit of the full model says after some tokens, without a cache."""
    with torch.no_grad():
        states = model().hf(torch.tensor([list(ids)]), output_hidden_states=True).hidden_states
    if exit == LAYERS:
        with torch.no_grad():
            return int(model().hf(torch.tensor([list(ids)])).logits[0, -1].argmax())
    with torch.no_grad():
        return int(model().hf.lm_head(model().hf.model.norm(states[exit][:, -1]))[0].argmax())


POLICIES = (
    "never",
    "static:exit=2",
    "threshold:signal=max_prob,value=0.3,exits=2+4",
    "patience:times=2,exits=1+2+3+4",
    "adaptive:signal=max_prob,target=0.3,warmup=2,exits=2+4",
)


@pytest.mark.parametrize("policy", [*map(parse_policy, POLICIES), Scripted((1, 5, 4, 5, 2))], ids=str)
@pytest.mark.parametrize("prompt", [REPEATING, [3, 1, 4, 1, 5]], ids=["repeating", "not"])
def test_every_token_is_what_its_exit_says(policy: ExitPolicy, prompt: list[int]) -> None:
    found = decode(model().hf, torch.tensor([prompt]), policy, "recompute", new=NEW, lookup=6)
    (row,) = found.rows
    assert len(row.tokens) == NEW
    for place, (token, exit) in enumerate(zip(row.tokens, row.exits.tolist(), strict=True)):
        assert token == said_at([*prompt, *row.tokens[:place]], exit), (place, exit)
    # At a draft nothing is asked, else the policy is.
    if isinstance(policy, Scripted):
        asked = [policy.exits[place % 5] for place in range(NEW - 1)]
        assert all(exit in (LAYERS, wanted) for exit, wanted in zip(row.exits[1:], asked, strict=True))
        assert any(exit == wanted < LAYERS for exit, wanted in zip(row.exits[1:], asked, strict=True))


def test_fewer_steps_give_the_same_text_where_it_repeats_itself() -> None:
    ids = torch.tensor([REPEATING])
    forced = [9, 7, 8, 9, 7, 8, 9, 7, 8, 9, 7, 8, 9, 7, 8, 9]
    plain = decode(model().hf, ids, "never", "recompute", forced=forced)
    found = decode(model().hf, ids, "never", "recompute", forced=forced, lookup=6)
    assert found.rows[0].chosen == plain.rows[0].chosen
    assert found.steps < plain.steps / 2
    assert found.accepted == len(forced) - 1 - found.steps
    assert found.drafted >= found.accepted > 0


@settings(deadline=None, max_examples=10)
@given(seed=st.integers(0, 50), most=st.integers(1, 9), new=st.integers(1, 20))
def test_without_exits_it_is_greedy_decoding(seed: int, most: int, new: int) -> None:
    ids = torch.tensor([[*ids_of(model().hf, 5, seed=seed)[0].tolist()] * 2])
    found = decode(model().hf, ids, "never", "propagate", new=new, lookup=most)
    assert found.rows[0].tokens == greedy(model().hf, ids, new)[0].tolist()


@pytest.mark.parametrize(
    "policy", ["never", "static:exit=4", "threshold:signal=max_prob,value=0.2,exits=2+4"]
)
def test_executed_layers_are_those_that_hooks_count(policy: str) -> None:
    ids = torch.tensor([REPEATING])
    with counted_layers(model().hf) as counts:
        found = decode(model().hf, ids, policy, "recompute", new=NEW, lookup=6)
    assert sum(counts.values()) == found.rows[0].layers_executed == found.layers_executed
    by_parts = sum(item.rows * count for item, count in found.usage.items() if item.part == "layers")
    assert found.rows[0].layers_executed - found.rows[0].prompt_layers == by_parts
    heads = sum(item.rows * count for item, count in found.usage.items() if item.part == "final head")
    assert heads >= sum(exit == LAYERS for exit in found.rows[0].exits[1:])
    assert found.drafted > found.accepted or policy == "never"


def test_a_short_list_verifies_what_it_would_say() -> None:
    cut = with_short_head(parse_policy("never"))
    ids = torch.tensor([REPEATING])
    plain = decode(model().hf, ids, cut, "recompute", new=NEW)
    found = decode(model().hf, ids, cut, "recompute", new=NEW, lookup=6)
    assert found.rows[0].tokens == plain.rows[0].tokens
    assert not [item for item in found.usage if item.part == "final head"]
    assert sum(item.rows * count for item, count in found.usage.items() if item.part == "short head") >= NEW


@pytest.mark.parametrize("new", range(1, 9))
def test_a_length_within_a_block_ends_the_text_there(new: int) -> None:
    ids = torch.tensor([REPEATING])
    whole = decode(model().hf, ids, "never", "recompute", new=12).rows[0].tokens
    found = decode(model().hf, ids, "never", "recompute", new=new, lookup=6)
    assert found.rows[0].tokens == whole[:new]


def test_an_end_token_within_a_block_ends_the_text_there() -> None:
    ids = torch.tensor([REPEATING])
    forced = [9, 7, 8, 9, 7, 8, 9]
    text = decode(model().hf, ids, "never", "recompute", new=NEW).rows[0].tokens
    for token in dict.fromkeys(text):
        found = decode(model().hf, ids, "never", "recompute", new=NEW, lookup=6, eos_token_id=token)
        assert found.rows[0].tokens == text[: text.index(token) + 1]
    assert decode(model().hf, ids, "never", "recompute", forced=forced, lookup=6).rows[0].tokens == forced


def test_processors_see_the_right_prefix_at_every_position() -> None:
    ids = torch.tensor([REPEATING])
    options: dict[str, Any] = {"repetition_penalty": 1.7, "no_repeat_ngram_size": 3}
    found = decode(model().hf, ids, "never", "recompute", new=NEW, lookup=6, **options)
    assert found.rows[0].tokens == greedy(model().hf, ids, NEW, **options)[0].tolist()


@pytest.mark.parametrize("name", ["gpt2", "mistral", "deepseek_v3", "gemma3_text"])
def test_wrong_drafts_leave_no_trace_in_windows(name: str) -> None:
    hf = build_windowed(name)
    layers, ids = engine_of(hf).layers, torch.tensor([[*ids_of(hf, 6)[0].tolist()] * 2])
    forced = [*ids_of(hf, 20, seed=3)[0].tolist()]
    forced[4:8] = ids[0, 2:6].tolist()  # some drafts are right
    policy = Scripted((layers - 1, layers, 1))
    plain = decode(hf, ids, policy, "recompute", forced=forced)
    found = decode(hf, ids, policy, "recompute", forced=forced, lookup=5)
    same = [place for place in range(20) if plain.rows[0].exits[place] == found.rows[0].exits[place]]
    assert found.drafted > found.accepted
    assert len(same) > 10
    assert [plain.rows[0].chosen[place] for place in same] == [found.rows[0].chosen[place] for place in same]


def test_numbers_that_are_not_finite_cost_no_token_before_them() -> None:
    poison = 60
    hf = build_windowed("llama")
    hf.config.eos_token_id = hf.generation_config.eos_token_id = poison
    with torch.no_grad():
        hf.get_input_embeddings().weight[poison] = torch.nan
    ids = torch.tensor([[7, 8, 9, 10, 7, 8]])
    forced = [9, 10, 7, 8, 9, poison, 12, 13]
    for policy in ("never", Scripted((2, 3, 1))):
        plain = decode(hf, ids, policy, "recompute", forced=forced)
        found = decode(hf, ids, policy, "recompute", forced=forced, lookup=4)
        assert plain.rows[0].stopped == found.rows[0].stopped == "problem"
        assert found.rows[0].tokens == plain.rows[0].tokens == forced[:6]
        assert found.rows[0].problem == plain.rows[0].problem


def test_what_it_cannot_do_is_refused() -> None:
    hf = model().hf
    with pytest.raises(PolicyError, match="lookup must be 0 with kv propagate"):
        decode(hf, torch.tensor([REPEATING]), "static:exit=2", "propagate", lookup=4)
    with pytest.raises(InputError, match="one sequence at a time"):
        decode(hf, torch.tensor([REPEATING] * 2), "static:exit=2", "recompute", lookup=4)
    recurrent = build_windowed("jamba")
    with pytest.raises(InputError, match="recurrent state"):
        decode(recurrent, ids_of(recurrent, 6), "never", "recompute", lookup=4)


def test_the_full_model_beside_it_copies_nothing() -> None:
    """Else what exits add would be held against drafts, and called plain decoding."""
    options = DecodingOptions.read("static:exit=2", kv="recompute", lookup=4)
    assert (options.lookup, options.full_model.lookup) == (4, 0)
    timed = bench(
        model(), "static:exit=2", kv="recompute", lookup=4, prompts=[REPEATING], new_tokens=8, rounds=1
    )
    assert timed.contender("never exit").layers_per_token == LAYERS
    assert timed.main.name == "static:exit=2 (recompute, lookup)"


@pytest.mark.real_model
def test_the_bundled_model_copies_what_it_repeats(smollm2: Model) -> None:
    prompt = "12 + 7 = 19. 12 + 8 = 20. 12 + 9 ="
    plain = offramp.generate(smollm2, prompt, max_new_tokens=24)
    found = offramp.generate(smollm2, prompt, max_new_tokens=24, lookup=10)
    assert found.tokens == plain.tokens
    assert np.all(found.exits == smollm2.layers)
