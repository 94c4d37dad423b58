"""Layers taken out of models of many families, against the whole model that skips them and by hand."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from family_configs import SPECIAL, build_family, small_config
from family_decoding import decode_greedily, generate
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from offramp.decoding.engine.build import engine_of
from offramp.errors import ModelError
from offramp.models.discovery import find_stack
from offramp.models.layer_removal import keep_layers
from offramp.models.stack import ExitStack
from offramp.models.transforms.transform import UNFIT

# Beyond the small models' sliding windows of 64.
PROMPT = 70
NEW = 5

# Learned positions, windows in turn, latent attention and experts, hybrids and recurrent ones.
FAMILIES = (
    "gpt2",
    "gemma3_text",
    "deepseek_v3",
    "jamba",
    "nemotron_h",
    "qwen3_next",
    "mamba",
)


def prompt(hf: Any) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, hf.config.get_text_config().vocab_size, (1, PROMPT), generator=generator)


def logits_of(hf: Any, ids: Tensor) -> Tensor:
    with torch.no_grad():
        return hf(input_ids=ids, use_cache=False).logits  # type: ignore[no-any-return]


def skipped_logits(hf: Any, stack: ExitStack, dropped: Sequence[int], ids: Tensor) -> Tensor:
    """Logits of the whole model whose dropped layers are never run: their input comes out again."""

    def skip(index: int) -> Any:
        def forward(*arguments: Any, **keywords: Any) -> Any:
            hidden, output = (
                arguments[0] if arguments else keywords["hidden_states"],
                stack.layer_outputs[index],
            )
            return (hidden, *[None] * (len(output) - 1)) if isinstance(output, tuple) else hidden

        return forward

    with pytest.MonkeyPatch.context() as patch:
        for index in dropped:
            patch.setattr(stack.layers[index], "forward", skip(index))
        return logits_of(hf, ids)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_left_computes_the_same_with_and_without_a_cache(family: str) -> None:
    hf = build_family(family)
    ids, stack = prompt(hf), find_stack(hf)
    dropped = [1] if len(stack) > 3 else [0]
    expected = skipped_logits(hf, stack, dropped, ids)
    keep = [index for index in range(len(stack)) if index not in dropped]
    keep_layers(hf, stack, keep)

    assert torch.equal(logits_of(hf, ids), expected)
    left = find_stack(hf)
    assert left.layers == tuple(stack.layers[index] for index in keep)
    assert left.largest_difference == 0.0
    assert hf.config.get_text_config().num_hidden_layers == len(keep)
    cached = generate(hf, ids, torch.ones_like(ids), NEW)
    assert torch.equal(cached, greedy_without_cache(hf, ids, cached.shape[1] - PROMPT))
    assert torch.equal(cached[:, PROMPT:], decode_greedily(engine_of(hf), ids, cached.shape[1] - PROMPT))


def greedy_without_cache(hf: Any, ids: Tensor, new: int) -> Tensor:
    for _ in range(new):
        ids = torch.cat([ids, logits_of(hf, ids)[:, -1:].argmax(-1)], 1)
    return ids


# The name of a layer's weights, up to its number; what a smaller config says instead.
BY_HAND: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("model.layers.", {"num_hidden_layers": 2}),
    "gpt2": ("transformer.h.", {"n_layer": 2}),
    "gemma2": (
        "model.layers.",
        {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"]},
    ),
    "bamba": ("model.layers.", {"num_hidden_layers": 2, "attn_layer_indices": [1]}),
}


@pytest.mark.parametrize("family", BY_HAND)
def test_it_equals_a_smaller_model_that_was_given_the_same_weights(family: str) -> None:
    prefix, smaller = BY_HAND[family]
    keep = [0, 3]
    hf = build_family(family)
    config = small_config(CONFIG_MAPPING[family], {**SPECIAL.get(family, {}), **smaller})
    by_hand = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    weights = {}
    for name, tensor in hf.state_dict().items():
        place, _, rest = name.removeprefix(prefix).partition(".")
        if not name.startswith(prefix):
            weights[name] = tensor
        elif int(place) in keep:
            weights[f"{prefix}{keep.index(int(place))}.{rest}"] = tensor
    by_hand.load_state_dict(weights)

    keep_layers(hf, find_stack(hf), keep)
    ids = prompt(hf)
    assert torch.equal(logits_of(hf, ids), logits_of(by_hand, ids))
    assert hf.state_dict().keys() == by_hand.state_dict().keys()
    mask = torch.ones_like(ids)
    assert torch.equal(generate(hf, ids, mask, NEW), generate(by_hand, ids, mask, NEW))


def test_one_layer_may_be_left_and_all_may_stay() -> None:
    hf = build_family("llama")
    stack = find_stack(hf)
    whole = logits_of(hf, prompt(hf))
    keep_layers(hf, stack, range(4))
    assert torch.equal(logits_of(hf, prompt(hf)), whole)
    keep_layers(hf, stack, [2])
    assert find_stack(hf).layers == (stack.layers[2],)
    assert stack.layers[2].self_attn.layer_idx == 0


REFUSED = {
    "zamba2": "share the weight",
    "zaya": "compute something else when they move up",
    "gemma3n_text": "its forward pass fails without them",
}


def snapshot(hf: Any) -> list[Any]:
    """All attributes of all modules and configs, and the classes of the configs."""
    taken: list[Any] = []
    for module in hf.modules():
        attributes = {**vars(module), "_modules": dict(module._modules)}
        taken.append({name: attributes[name] for name in attributes if not name.startswith("_forward")})
        taken += [
            (type(value), dict(vars(value)))
            for value in vars(module).values()
            if isinstance(value, PreTrainedConfig)
        ]
    return taken


def same(one: Any, other: Any) -> bool:
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(itertools.starmap(same, zip(one, other, strict=True)))
    return one is other or (not isinstance(one, Tensor) and bool(one == other))


@pytest.mark.parametrize("family", REFUSED)
def test_a_family_that_needs_all_its_layers_is_refused_and_left_as_it_was(family: str) -> None:
    assert set(UNFIT["prune"]) == set(REFUSED)
    hf = build_family(family)
    stack = find_stack(hf)
    before = snapshot(hf)
    with pytest.raises(ModelError, match=REFUSED[family]):
        keep_layers(hf, stack, [index for index in range(len(stack)) if index != 1])
    assert same(snapshot(hf), before)


def test_a_model_that_runs_a_layer_several_times_is_refused() -> None:
    hf = build_family("llama")
    hf.model.layers[2] = hf.model.layers[1]
    with pytest.raises(ModelError, match="executes a layer several times"):
        keep_layers(hf, find_stack(hf), [0, 1, 2])


@pytest.mark.parametrize("keep", [[], [4], [-1], [1, 0], [0, 0]], ids=str)
def test_layers_that_are_not_there_are_refused(keep: list[int]) -> None:
    hf = build_family("llama")
    with pytest.raises(ModelError, match="not layers to keep"):
        keep_layers(hf, find_stack(hf), keep)
    assert len(hf.model.layers) == 4


@pytest.mark.parametrize("family", ["jamba", "bamba"])
def test_any_layers_may_stay_where_kinds_of_layers_follow_from_their_number(family: str) -> None:
    for count in (1, 2):
        for keep in itertools.combinations(range(4), count):
            hf = build_family(family)
            stack, ids = find_stack(hf), prompt(hf)
            kinds = hf.config.layers_block_type
            expected = skipped_logits(hf, stack, [index for index in range(4) if index not in keep], ids)
            if not {1, 3} & set(keep):  # no attention: these families keep no cache then
                with pytest.raises(ModelError, match="does not run with a cache without them"):
                    keep_layers(hf, stack, keep)
                continue
            keep_layers(hf, stack, keep)
            assert torch.equal(logits_of(hf, ids), expected)
            assert hf.config.layers_block_type == [kinds[index] for index in keep]


def test_a_model_that_turns_out_other_is_left_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    hf = build_family("jamba")
    stack, before = find_stack(hf), snapshot(hf)
    monkeypatch.setattr(torch, "equal", lambda one, other: False)
    with pytest.raises(ModelError, match="compute something else when they move up"):
        keep_layers(hf, stack, [1, 3])
    assert same(snapshot(hf), before)
    assert hf.config.layers_block_type == ["mamba", "attention"] * 2
