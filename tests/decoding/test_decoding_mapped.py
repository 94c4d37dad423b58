"""Decoding with mapped K and V, against a slow reference and against `propagate`."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import numpy as np
import pytest
import torch
from family_configs import VOCABULARY
from generation_cases import POLICY, PROMPTS, assert_same, counted_layers, generate_batch, tiny_llama
from map_cases import heads_with, mapped_logits, mapped_state, mapped_tokens, maps_for, random_maps
from reading_cases import random_heads
from strategy_cases import Scripted, build_family, greedy, ids_of

import offramp
from offramp.decoding.engine.build import engine_of
from offramp.decoding.generation.loop import Scorer
from offramp.decoding.generation.prompts import prompt_batch
from offramp.decoding.options import DecodingOptions
from offramp.decoding.strategies.mapped import StateMaps
from offramp.errors import InputError, PolicyError
from offramp.heads.exit_heads import ExitHeads, KeyValueMaps
from offramp.policies.grammar import parse_policy
from tiny_models import LAYERS

NEW = 14
SHALLOW = "threshold:signal=margin,value=0.01,exits=1+2"


@functools.cache
def heads() -> ExitHeads:
    return maps_for(tiny_llama())


def maps_of(fitted: ExitHeads) -> KeyValueMaps:
    assert fitted.kv_maps is not None
    return fitted.kv_maps


@pytest.mark.parametrize("rank", [None, 1, 5])
@pytest.mark.parametrize("shape", [(1, 1, 8), (3, 1, 8), (2, 4, 8), (5, 8)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_states_are_those_of_a_plain_loop(
    rank: int | None, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    layers = 7
    maps = random_maps(8, layers, range(1, layers - 1), rank=rank)
    hidden = torch.randn(*shape, generator=torch.Generator().manual_seed(1)).to(dtype)
    ready = StateMaps(maps, layers, hidden.device)
    for exit in range(1, layers + 1):
        states = ready.inputs_after(exit, hidden)
        assert len(states) == layers - exit
        if states:
            assert states[0] is hidden
        for layer, state in enumerate(states[1:], start=exit + 1):
            assert state.shape == hidden.shape
            assert state.dtype == dtype
            expected = mapped_state(maps, exit, layer, hidden.float().numpy())
            tolerance = 1e-5 if dtype == torch.float32 else 2.0**-7
            np.testing.assert_allclose(state.float().numpy(), expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("policy", [POLICY, Scripted((1, 4, 2, 3, 4)), "patience:times=1,exits=1+2+3"])
@pytest.mark.parametrize(("batch", "batching"), [(1, "lockstep"), (4, "lockstep"), (4, "rebatch")])
def test_maps_that_change_nothing_are_propagate(policy: str | Scripted, batch: int, batching: str) -> None:
    """Bit for bit: prompts of different lengths, padded on the left."""
    model, nothing = tiny_llama(), maps_for(tiny_llama(), scale=0.0)
    prompts = prompt_batch(model, list(PROMPTS[:batch]), chat=False)
    given: dict[str, Any] = {"policy": policy, "batching": batching, "max_new_tokens": NEW}
    plain = generate_batch(model, prompts.ids, prompts.mask, **given)
    mapped = generate_batch(model, prompts.ids, prompts.mask, kv="mapped", heads=nothing, **given)
    varied = len({exit for row in plain.rows for exit in row.exits.tolist()}) > 1
    assert varied or "patience" in str(policy)
    for left, right in zip(plain.rows, mapped.rows, strict=True):
        assert_same(left, right)
    maps = {item: count for item, count in mapped.usage.items() if item.part == "K,V map"}
    assert mapped.usage - plain.usage == maps
    assert mapped.layers_executed == plain.layers_executed


def test_later_tokens_read_what_maps_gave() -> None:
    """A token that goes deep reads K and V of those that left; from exit L - 1 there is nothing to map."""
    model, prompt = tiny_llama(), tiny_llama().encode(PROMPTS[0])
    tokens = {}
    for exits in ((1, 4, 2, 4), (3, 4)):
        given: dict[str, Any] = {"policy": Scripted(exits), "max_new_tokens": NEW}
        found = offramp.generate(model, PROMPTS[0], kv="mapped", heads=heads(), **given)
        assert tuple(found.exits[1:].tolist()) == (exits * NEW)[: NEW - 1]
        assert found.tokens == mapped_tokens(model, maps_of(heads()), prompt, found)
        propagated = offramp.generate(model, PROMPTS[0], **given)
        tokens[exits] = found.tokens == propagated.tokens
        assert found.layers_executed == propagated.layers_executed
    assert tokens == {(1, 4, 2, 4): False, (3, 4): True}


@pytest.mark.parametrize("batching", ["lockstep", "rebatch"])
@pytest.mark.parametrize(
    ("policy", "rank"),
    [(POLICY, None), ("adaptive:signal=max_prob,target=0.05,warmup=2,exits=1+2+3", 3)],
)
def test_exits_that_vary_are_the_slow_reference(policy: str, batching: str, rank: int | None) -> None:
    """Rows leave at different exits, and those that go on read what the others' maps gave."""
    model, fitted = tiny_llama(), maps_for(tiny_llama(), rank=rank)
    rows = offramp.generate(
        model, list(PROMPTS), policy=policy, batching=batching, kv="mapped", heads=fitted, max_new_tokens=NEW
    )
    assert len({exit for row in rows for exit in row.exits.tolist()}) > 1
    for prompt, row in zip(PROMPTS, rows, strict=True):
        assert row.tokens == mapped_tokens(model, maps_of(fitted), model.encode(prompt), row)


def test_a_filter_needs_no_maps_where_nothing_leaves() -> None:
    model, fitted = tiny_llama(), maps_for(tiny_llama(), [2])
    policy = "filtered:signal=margin,value=0.003,exit=1,policy=[static:exit=2]"
    found = offramp.generate(
        model, PROMPTS[0], policy=policy, kv="mapped", heads=fitted, max_new_tokens=2 * NEW
    )
    assert set(found.exits[1:].tolist()) == {2, LAYERS}
    assert found.tokens == mapped_tokens(model, maps_of(fitted), model.encode(PROMPTS[0]), found)


def test_rows_that_are_over_hold_nobody_back() -> None:
    model = tiny_llama()
    given: dict[str, Any] = {"policy": SHALLOW, "kv": "mapped", "heads": heads(), "max_new_tokens": NEW}
    whole = offramp.generate(model, list(PROMPTS), batching="rebatch", **given)
    end = whole[0].tokens[3]
    cut = offramp.generate(model, list(PROMPTS), batching="rebatch", eos_token_id=end, **given)
    assert len(cut[0].tokens) <= 4
    for row, other in zip(cut, whole, strict=True):
        assert row.tokens == other.tokens[: len(row.tokens)]


@pytest.mark.parametrize("name", ["gpt2", "deepseek_v3", "mamba", "jamba"])
def test_families_are_the_slow_reference(name: str) -> None:
    """Recurrent layers run whole on their mapped state."""
    hf = build_family(name)
    engine = engine_of(hf)
    layers, width = engine.stack.layers, hf.config.get_text_config().hidden_size
    ids = ids_of(hf, 9)
    maps = random_maps(width, len(layers), range(1, len(layers) - 1), scale=0.1)
    fitted = heads_with(maps, layers=len(layers), hidden_size=width, vocabulary_size=VOCABULARY)
    script = (1, len(layers), len(layers))
    early = offramp.early_exit(Scripted(script), kv="mapped", heads=fitted)

    with counted_layers(hf) as counts:
        tokens = greedy(hf, ids, 6, custom_generate=early, eos_token_id=None)[0].tolist()
    exits = [len(layers)] * 9 + [1, len(layers), len(layers), 1, len(layers)]
    logits = mapped_logits(hf, layers, maps, [*ids[0].tolist(), *tokens[:-1]], exits)
    assert tokens == logits[8:].argmax(-1).tolist()
    assert early.last is not None
    assert counts.total() == early.last.layers_executed
    assert counts.total() == 12 * len(layers) + 2 * (1 + sum(layer > 0 for layer in engine.recurrent))


def test_scores_are_those_of_mapped_states() -> None:
    model = tiny_llama()
    ids = model.encode(" ".join(PROMPTS))
    scored = Scorer(model, DecodingOptions(parse_policy(SHALLOW), "mapped", heads())).score(ids[:5], ids[5:])
    assert len(set(scored.exits.tolist())) > 1
    exits = [LAYERS] * 4 + scored.exits.tolist()
    logits = mapped_logits(model.hf, model.stack.layers, maps_of(heads()), ids[:-1], exits)[4:]
    expected = logits.double().log_softmax(-1).gather(1, torch.tensor(ids[5:])[:, None])[:, 0]
    np.testing.assert_allclose(scored.logprobs, expected.numpy(), atol=1e-5)


def without_exit(fitted: ExitHeads, exit: int) -> ExitHeads:
    maps = {place: one for place, one in maps_of(fitted).maps.items() if place != exit}
    return dataclasses.replace(fitted, kv_maps=KeyValueMaps(maps))


def of_base(**base: Any) -> ExitHeads:
    return dataclasses.replace(heads(), model={**heads().model, **base})


@pytest.mark.parametrize(
    ("fitted", "error", "why"),
    [
        (None, InputError, "there are no K,V maps"),
        (dataclasses.replace(heads(), kv_maps=None), InputError, "no K,V maps in these exit heads"),
        (without_exit(heads(), 2), PolicyError, r"leaves at exit 2, .* they start at: 1"),
        (without_exit(heads(), 1), PolicyError, r"leaves at exit 1, .* they start at: 2"),
        (of_base(fingerprint="b" * 64), InputError, "fitted on"),
        (of_base(dtype="bfloat16"), InputError, "dtype bfloat16, this one has float32"),
        (of_base(layers=9), InputError, "layers 9, this one has 4"),
        (heads_with(random_maps(8, LAYERS, [1, 2]), tiny_llama()), InputError, "K,V maps takes 8 numbers"),
    ],
)
def test_what_cannot_be_mapped_is_refused_before_anything_runs(
    fitted: ExitHeads | None, error: type[Exception], why: str
) -> None:
    model = tiny_llama()
    with counted_layers(model.hf) as counts, pytest.raises(error, match=why) as caught:
        offramp.generate(model, PROMPTS[0], policy=SHALLOW, kv="mapped", heads=fitted)
    assert not counts
    fix = getattr(caught.value, "fix", "")
    assert "offramp heads fit" in fix
    if "fitted on" not in why and "takes" not in why:
        assert "--kv-maps 1,2" in fix


def test_the_ability_follows_propagate() -> None:
    engine = engine_of(tiny_llama())
    assert engine.abilities.reason("mapped") is None
    abilities = dataclasses.replace(engine).abilities
    assert abilities.reason("mapped") == abilities.reason("propagate")


def test_maps_beside_a_lens_leave_the_lens_what_it_is() -> None:
    lens = random_heads(tiny_llama(), [1, 2, 3], facts=())
    both = dataclasses.replace(lens, kv_maps=heads().kv_maps)
    given: dict[str, Any] = {"policy": POLICY, "max_new_tokens": NEW}
    plain = offramp.generate(tiny_llama(), PROMPTS[0], heads=lens, **given)
    assert_same(plain, offramp.generate(tiny_llama(), PROMPTS[0], heads=both, **given))
