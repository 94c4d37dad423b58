"""Shapes measured from modules against numbers worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from offramp.kit.typed import from_json, to_json
from offramp.models.discovery import find_stack
from offramp.models.measuring import measure_shape
from offramp.models.shape import LayerShape, ModelShape

V, H = 101, 32


def shape_of(name: str, **config: Any) -> ModelShape:
    import transformers

    torch.manual_seed(0)
    config_class = getattr(transformers, f"{name}Config")
    model_class = getattr(transformers, f"{name}ForCausalLM", None) or getattr(
        transformers, f"{name}LMHeadModel"
    )
    model = model_class(config_class(**({"vocab_size": V} | config))).eval().requires_grad_(False)
    shape = measure_shape(model, find_stack(model))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert from_json(ModelShape, to_json(shape)) == shape
    return shape


DENSE = {"hidden_size": H, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}


def test_llama() -> None:
    shape = shape_of("Llama", **DENSE, num_key_value_heads=2)
    attention = 2 * H * H + 2 * H * 16  # Q and O; K and V of 2 heads x 8
    parameters = attention + 3 * H * 48 + 2 * H
    expected = LayerShape("attention", parameters, parameters, 2 * H * 16, 2 * 16, 32, None, 0)
    assert shape == ModelShape((expected, expected), H, V, H, V * H, 4)


def test_gpt2_with_a_fused_projection() -> None:
    shape = shape_of("GPT2", n_embd=H, n_layer=2, n_head=4, n_positions=64)
    parameters = (H * 3 * H + 3 * H) + (H * H + H) + (H * 4 * H + 4 * H) + (4 * H * H + H) + 4 * H
    expected = LayerShape("attention", parameters, parameters, 2 * H * H, 2 * H, H, None, 0)
    assert shape == ModelShape((expected, expected), H, V, 2 * H, V * H, 4)


def test_attention_that_keeps_no_cache_has_the_keys_of_its_config() -> None:
    shape = shape_of("OpenAIGPT", n_embd=H, n_layer=2, n_head=4, n_positions=64)
    assert [(layer.kind, layer.key_value_width) for layer in shape.layers] == [("attention", 2 * H)] * 2
    assert shape.layers[0].key_value_parameters == 2 * H * H


def test_mixtral_counts_two_of_four_experts() -> None:
    shape = shape_of(
        "Mixtral",
        **DENSE,
        num_key_value_heads=2,
        num_local_experts=4,
        num_experts_per_tok=2,
        sliding_window=24,
    )
    expert = 3 * H * 48
    rest = 2 * H * H + 2 * H * 16 + 2 * H + 4 * H
    sizes = (rest + 4 * expert, rest + 2 * expert, 2 * H * 16, 32, 32, 24, 0)
    expected = LayerShape("attention", *sizes, experts=4, experts_per_token=2, expert_parameters=4 * expert)
    assert shape.layers == (expected, expected)


def test_mamba_has_a_state_and_no_keys() -> None:
    shape = shape_of("Mamba", hidden_size=H, num_hidden_layers=2, state_size=6)
    layer = shape.layers[0]
    inner = 2 * H
    assert (layer.kind, layer.key_value_width, layer.key_value_parameters) == ("recurrent", 0, 0)
    assert layer.attention_width == 0
    assert (
        layer.state_elements == inner * 6 + inner * 4
    )  # the recurrent state and the convolution's last 4 inputs


def test_hybrid_layers_keep_both_kinds_apart() -> None:
    shape = shape_of(
        "Jamba",
        **DENSE,
        num_key_value_heads=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=2,
        mamba_d_state=6,
        use_mamba_kernels=False,
        pad_token_id=0,
    )
    recurrent, attention = shape.layers
    assert (recurrent.kind, recurrent.state_elements) == ("recurrent", 2 * H * 6 + 2 * H * 4)
    assert (attention.kind, attention.key_value_width, attention.attention_width) == ("attention", 32, 32)
    assert attention.key_value_parameters == 2 * H * 16


def test_attention_and_state_in_one_layer() -> None:
    shape = shape_of(
        "FalconH1",
        **DENSE,
        num_key_value_heads=2,
        head_dim=8,
        mamba_n_heads=8,
        mamba_d_head=8,
        mamba_d_ssm=64,
        mamba_d_state=6,
        mamba_n_groups=2,
        mamba_chunk_size=8,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    layer = shape.layers[0]
    assert (layer.kind, layer.key_value_width, layer.key_value_parameters) == ("hybrid", 32, 2 * H * 16)
    assert layer.state_elements == 64 * 6 + (64 + 2 * 2 * 6) * 4


def test_latent_attention_counts_what_the_cache_holds() -> None:
    shape = shape_of(
        "DeepseekV3",
        **DENSE,
        num_key_value_heads=4,
        n_routed_experts=4,
        n_group=1,
        topk_group=1,
        num_experts_per_tok=2,
        moe_intermediate_size=16,
        first_k_dense_replace=1,
        n_shared_experts=1,
        kv_lora_rank=10,
        q_lora_rank=8,
        qk_rope_head_dim=4,
        qk_nope_head_dim=6,
        v_head_dim=12,
    )
    dense, mixture = shape.layers
    latent = H * (10 + 4) + 10 * 4 * (
        6 + 12
    )  # down to the latent and the rotary key; up to K and V of 4 heads
    cached = dense.key_value_width
    assert cached in (
        10 + 4,
        4 * (10 + 12),
    )  # the latent, or the heads unpacked, as transformers' version keeps it
    assert dense.key_value_parameters in (H * (10 + 4), latent)
    assert dense.attention_width == pytest.approx(4 * (10 + 12) / 2)
    assert mixture.parameters - mixture.active_parameters == 2 * 3 * H * 16
    assert (dense.experts, mixture.experts, mixture.experts_per_token) == (0, 4, 2)
    assert mixture.expert_parameters == 4 * 3 * H * 16
    # A latent in the cache is unpacked anew for every position.
    expansion = 10 * 4 * (6 + 12) if cached == 10 + 4 else 0
    assert dense.expansion_parameters == mixture.expansion_parameters == expansion
