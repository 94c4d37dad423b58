"""Decoding with mapped K and V, against a slow reference and against `propagate`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from generation_cases import POLICY, PROMPTS, assert_same, counted_layers, generate_batch, tiny_llama
from map_cases import heads_with, mapped_logits, mapped_state, mapped_tokens, maps_for, random_maps
from reading_cases import random_heads
from strategy_cases import Scripted

import offramp
from models.family_configs import VOCABULARY, build_family
from offramp.decoding.engine.build import engine_of
from offramp.decoding.generation.prompts import prompt_batch
from offramp.decoding.generation.scoring import Scorer
from offramp.decoding.options import DecodingOptions
from offramp.decoding.strategies.mapped import StateMaps
from offramp.errors import InputError, PolicyError
from offramp.policies.grammar import parse_policy
from offramp.tracing.described_heads import describe_heads
from offramp.tracing.exit_heads import ExitHeads, KeyValueMaps
from tiny_models import LAYERS

NEW = 14
SHALLOW = "threshold:signal=margin,value=0.01,exits=1+2"
FAMILIES = ("gpt2", "gemma2", "mixtral", "deepseek_v3", "opt", "mamba", "jamba", "bamba")


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


@pytest.mark.parametrize("rank", [None, 2])
@pytest.mark.parametrize("policy", [POLICY, Scripted((1, 4, 2, 3, 4)), "patience:times=1,exits=1+2+3"])
@pytest.mark.parametrize(("batch", "batching"), [(1, "lockstep"), (4, "lockstep"), (4, "rebatch")])
def test_maps_that_change_nothing_are_propagate(
    policy: str | Scripted, batch: int, batching: str, rank: int | None
) -> None:
    """Bit for bit: prompts of different lengths, padded on the left."""
    model, nothing = tiny_llama(), maps_for(tiny_llama(), rank=rank, scale=0.0)
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


def test_scores_with_maps_that_change_nothing_are_those_of_propagate() -> None:
    model, policy = tiny_llama(), parse_policy(POLICY)
    ids = model.encode(" ".join(PROMPTS))
    nothing = maps_for(model, scale=0.0)
    plain = Scorer(model, DecodingOptions(policy)).score(ids[:5], ids[5:])
    mapped = Scorer(model, DecodingOptions(policy, "mapped", nothing)).score(ids[:5], ids[5:])
    np.testing.assert_array_equal(plain.logprobs, mapped.logprobs)
    np.testing.assert_array_equal(plain.exits, mapped.exits)


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
@pytest.mark.parametrize("policy", [POLICY, "adaptive:signal=max_prob,target=0.05,warmup=2,exits=1+2+3"])
@pytest.mark.parametrize("rank", [None, 3])
def test_exits_that_vary_are_the_slow_reference(policy: str, batching: str, rank: int | None) -> None:
    """Rows leave at different exits, and those that go on read what the others' maps gave."""
    model, fitted = tiny_llama(), maps_for(tiny_llama(), rank=rank)
    rows = offramp.generate(
        model, list(PROMPTS), policy=policy, batching=batching, kv="mapped", heads=fitted, max_new_tokens=NEW
    )
    assert len({exit for row in rows for exit in row.exits.tolist()}) > 1
    for prompt, row in zip(PROMPTS, rows, strict=True):
        assert row.tokens == mapped_tokens(model, maps_of(fitted), model.encode(prompt), row)


def test_rebatch_gives_each_row_what_it_has_alone() -> None:
    model = tiny_llama()
    given: dict[str, Any] = {"policy": POLICY, "kv": "mapped", "heads": heads(), "max_new_tokens": NEW}
    together = offramp.generate(model, list(PROMPTS), batching="rebatch", **given)
    for prompt, row in zip(PROMPTS, together, strict=True):
        assert_same(row, offramp.generate(model, prompt, **given))


def test_rows_that_are_over_hold_nobody_back() -> None:
    model = tiny_llama()
    given: dict[str, Any] = {"policy": SHALLOW, "kv": "mapped", "heads": heads(), "max_new_tokens": NEW}
    whole = offramp.generate(model, list(PROMPTS), batching="rebatch", **given)
    end = whole[0].tokens[3]
    cut = offramp.generate(model, list(PROMPTS), batching="rebatch", eos_token_id=end, **given)
    assert len(cut[0].tokens) <= 4
    for row, other in zip(cut, whole, strict=True):
        assert row.tokens == other.tokens[: len(row.tokens)]


@pytest.mark.parametrize("exit", [1, 2])
def test_deeper_layers_are_given_exactly_the_mapped_states(exit: int) -> None:
    """Spies on the first module of every layer, which is called also where the layer stops after its K,V."""
    model, fitted = tiny_llama(), heads()
    given: list[tuple[int, torch.Tensor]] = []
    handles = [
        layer.input_layernorm.register_forward_pre_hook(
            lambda module, arguments, place=place: given.append((place, arguments[0].clone()))
        )
        for place, layer in enumerate(model.hf.model.layers, start=1)
    ]
    try:
        offramp.generate(
            model, PROMPTS[0], policy=f"static:exit={exit}", kv="mapped", heads=fitted, max_new_tokens=3
        )
    finally:
        for handle in handles:
            handle.remove()
    steps = given[-2 * LAYERS :]
    ready = StateMaps(maps_of(fitted), LAYERS, torch.device("cpu"))
    for step in (steps[:LAYERS], steps[LAYERS:]):
        assert [place for place, _ in step] == [1, 2, 3, 4]
        for (_, state), expected in zip(step[exit:], ready.inputs_after(exit, step[exit][1]), strict=True):
            assert torch.equal(state, expected)


@functools.cache
def family(name: str) -> Any:
    return build_family(name)


@pytest.mark.parametrize("name", FAMILIES)
def test_families_are_the_slow_reference(name: str) -> None:
    """Recurrent layers run whole on their mapped state."""
    hf = family(name)
    engine = engine_of(hf)
    layers, width = engine.stack.layers, hf.config.get_text_config().hidden_size
    ids = torch.randint(3, VOCABULARY, (1, 9), generator=torch.Generator().manual_seed(4))
    maps = random_maps(width, len(layers), range(1, len(layers) - 1), scale=0.1)
    fitted = heads_with(maps, layers=len(layers), hidden_size=width, vocabulary_size=VOCABULARY)
    script = (1, len(layers), len(layers))
    early = offramp.early_exit(Scripted(script), kv="mapped", heads=fitted)

    def decode() -> list[int]:
        out = hf.generate(
            ids,
            custom_generate=early,
            max_new_tokens=6,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
        )
        return out[0].tolist()

    decode()  # tries abilities
    with counted_layers(hf, layers) as counts:
        out = decode()
    exits = [len(layers)] * 9 + [1, len(layers), len(layers), 1, len(layers)]
    expected = mapped_logits(hf, layers, maps, out[:-1], exits)[8:].argmax(-1).tolist()
    assert out[9:] == expected
    assert early.last is not None
    assert sum(counts) == early.last.layers_executed
    assert sum(counts) == 12 * len(layers) + 2 * (1 + sum(engine.recurrent[1:]))


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
    ("fitted", "policy", "error", "why"),
    [
        (None, SHALLOW, InputError, "there are no K,V maps"),
        (dataclasses.replace(heads(), kv_maps=None), SHALLOW, InputError, "no K,V maps in these exit heads"),
        (without_exit(heads(), 2), SHALLOW, PolicyError, r"leaves at exit 2, .* they start at: 1"),
        (without_exit(heads(), 1), SHALLOW, PolicyError, r"leaves at exit 1, .* they start at: 2"),
        (of_base(fingerprint="b" * 64), SHALLOW, InputError, "fitted on"),
        (of_base(dtype="bfloat16"), SHALLOW, InputError, "dtype bfloat16, this one has float32"),
        (of_base(layers=9), SHALLOW, InputError, "layers 9, this one has 4"),
    ],
)
def test_what_cannot_be_mapped_is_refused_before_anything_runs(
    fitted: ExitHeads | None, policy: str, error: type[Exception], why: str
) -> None:
    model = tiny_llama()
    with counted_layers(model.hf, model.stack.layers) as counts, pytest.raises(error, match=why) as caught:
        offramp.generate(model, PROMPTS[0], policy=policy, kv="mapped", heads=fitted)
    assert not counts
    fix = getattr(caught.value, "fix", "")
    assert "offramp heads fit" in fix
    if "fitted on" not in why:
        assert "--kv-maps 1,2" in fix


def test_maps_of_another_width_are_refused() -> None:
    model = tiny_llama()
    fitted = heads_with(random_maps(8, LAYERS, [1, 2]), model)
    with pytest.raises(InputError, match="K,V maps takes 8 numbers"):
        offramp.generate(model, PROMPTS[0], policy=SHALLOW, kv="mapped", heads=fitted)


def test_maps_change_nothing_for_the_other_strategies() -> None:
    model = tiny_llama()
    for kv in ("propagate", "recompute"):
        plain = offramp.generate(model, PROMPTS[0], policy=POLICY, kv=kv, max_new_tokens=NEW)
        given = offramp.generate(
            model, PROMPTS[0], policy=POLICY, kv=kv, heads=without_exit(heads(), 2), max_new_tokens=NEW
        )
        assert_same(plain, given)


def test_the_ability_follows_propagate() -> None:
    engine = engine_of(tiny_llama())
    assert engine.abilities.reason("mapped") is None
    abilities = dataclasses.replace(engine).abilities
    assert abilities.reason("mapped") == abilities.reason("propagate")


def test_steps_of_several_rows_map_them_together() -> None:
    """One product for all rows that leave at an exit together."""
    model = tiny_llama()
    prompts = prompt_batch(model, list(PROMPTS), chat=False)
    calls: list[tuple[int, Sequence[int]]] = []
    own = StateMaps.inputs_after

    def spy(self: StateMaps, exit: int, hidden: torch.Tensor) -> Any:
        calls.append((exit, tuple(hidden.shape)))
        return own(self, exit, hidden)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StateMaps, "inputs_after", spy)
        found = generate_batch(
            model,
            prompts.ids,
            prompts.mask,
            policy=SHALLOW,
            batching="rebatch",
            kv="mapped",
            heads=heads(),
            max_new_tokens=NEW,
        )
    leaving = sum(int((row.exits[1:] < LAYERS).sum()) for row in found.rows)
    assert sum(shape[0] for _, shape in calls) == leaving > len(calls)


class TunedWith:
    """As much of a tuned policy as the check of heads reads."""

    def __init__(self, fitted: ExitHeads | None, kv: str = "mapped") -> None:
        self.kv, self.heads_file = kv, None
        self.model = {"heads": None if fitted is None else describe_heads(fitted)}


def check_heads(tuned: Any, policy: str, fitted: ExitHeads | None, kv: str) -> None:
    DecodingOptions(parse_policy(policy), kv, fitted, tuned=tuned).check_tuned_heads(LAYERS)


def test_a_policy_tuned_with_mapped_states_wants_the_same_maps() -> None:
    """Maps do not change what exits are read by, so that all else may be decoded with others or without."""
    others, same = maps_for(tiny_llama(), seed=1), TunedWith(heads())
    check_heads(same, SHALLOW, heads(), "mapped")
    check_heads(same, SHALLOW, others, "propagate")
    check_heads(same, SHALLOW, None, "recompute")
    for tuned in (TunedWith(None, "propagate"), TunedWith(others, "propagate")):
        check_heads(tuned, SHALLOW, heads(), "mapped")
    with pytest.raises(PolicyError, match="tuned with the K,V maps"):
        check_heads(same, SHALLOW, others, "mapped")


def test_maps_beside_a_lens_leave_the_lens_what_it_is() -> None:
    lens = random_heads(tiny_llama(), [1, 2, 3], facts=())
    both = dataclasses.replace(lens, kv_maps=heads().kv_maps)
    check_heads(TunedWith(lens, "propagate"), POLICY, both, "propagate")
    check_heads(TunedWith(both), POLICY, both, "mapped")
    with pytest.raises(PolicyError, match="tuned with the exit heads"):
        check_heads(TunedWith(both), POLICY, heads(), "mapped")
    with pytest.raises(PolicyError, match="tuned without any"):
        check_heads(TunedWith(heads()), POLICY, both, "mapped")
    given: dict[str, Any] = {"policy": POLICY, "max_new_tokens": NEW}
    plain = offramp.generate(tiny_llama(), PROMPTS[0], heads=lens, **given)
    assert_same(plain, offramp.generate(tiny_llama(), PROMPTS[0], heads=both, **given))
