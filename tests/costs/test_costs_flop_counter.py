"""The FLOP count against torch's own counter, on small models of real families decoding one token."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    DeepseekV2Config,
    DeepseekV3Config,
    FalconH1Config,
    GPT2Config,
    GPTNeoXConfig,
    GptOssConfig,
    JambaConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
)

from offramp.costs.counting import STATE_FLOPS, head_flops, key_value_flops, layer_flops
from offramp.models.discovery import find_stack
from offramp.models.measuring import measure_shape

# The keyword moved in transformers 5.24.
CACHE = "cache" if "cache" in inspect.signature(LlamaForCausalLM.forward).parameters else "past_key_values"
POSITION = 40
SMALL = {"vocab_size": 512, "num_hidden_layers": 3, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
WIDE = {**SMALL, "hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 8}
LATENT = {
    "num_key_value_heads": 8,
    "n_routed_experts": 8,
    "n_group": 1,
    "topk_group": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 64,
    "first_k_dense_replace": 1,
    "n_shared_experts": 1,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
}

CONFIGS: dict[str, Any] = {
    "llama grouped-query": LlamaConfig(**WIDE, num_key_value_heads=2),
    "qwen2 with biases": Qwen2Config(**WIDE, num_key_value_heads=4, use_sliding_window=False),
    "gpt-neox parallel": GPTNeoXConfig(**WIDE),
    "gpt2": GPT2Config(vocab_size=512, n_layer=3, n_embd=128, n_head=8, bos_token_id=1, eos_token_id=2),
    "mistral sliding window": MistralConfig(**WIDE, num_key_value_heads=2, sliding_window=16),
    "mixtral experts": MixtralConfig(
        **WIDE, num_key_value_heads=2, num_local_experts=8, num_experts_per_tok=2, sliding_window=None
    ),
    "gpt-oss experts, wide heads": GptOssConfig(
        **WIDE, num_key_value_heads=2, head_dim=32, num_local_experts=8, num_experts_per_tok=2
    ),
    "deepseek-v2 latent attention": DeepseekV2Config(**WIDE, **LATENT, q_lora_rank=None, head_dim=8),
    "deepseek-v3 latent attention": DeepseekV3Config(**WIDE, **LATENT, q_lora_rank=48),
}
RECURRENT: dict[str, Any] = {
    "mamba": MambaConfig(vocab_size=512, hidden_size=128, num_hidden_layers=2, state_size=16),
    "mamba2": Mamba2Config(
        **SMALL, hidden_size=128, state_size=16, num_heads=8, head_dim=32, n_groups=1, chunk_size=8
    ),
    "jamba hybrid of layers": JambaConfig(
        **{**WIDE, "num_hidden_layers": 2},
        num_key_value_heads=2,
        attn_layer_period=2,
        attn_layer_offset=1,
        num_experts=2,
        num_experts_per_tok=1,
    ),
    "falcon-h1 hybrid in a layer": FalconH1Config(
        **WIDE,
        num_key_value_heads=2,
        head_dim=16,
        mamba_n_heads=8,
        mamba_d_head=32,
        mamba_d_ssm=256,
        mamba_d_state=16,
        mamba_n_groups=1,
        mamba_chunk_size=8,
    ),
}
# Elements of the state whose read-out these families compute as a product of matrices: heads x size x state.
STATE_PRODUCTS = {"mamba2": 8 * 32 * 16, "falcon-h1 hybrid in a layer": 8 * 32 * 16}


def build(config: Any) -> Any:
    torch.manual_seed(0)
    # Eager attention and experts: the counter does not see the fused kernels.
    config._experts_implementation = "eager"
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32).eval()


def count_one_token(model: Any, position: int, batch: int = 1) -> tuple[list[float], float]:
    """FLOPs per layer and in the head of the token at `position`, as torch counts them."""
    ids = (torch.arange(batch)[:, None] * 7 + torch.arange(position + 1)) % 500 + 5
    counter = FlopCounterMode(display=False)
    with torch.no_grad():
        output = model(input_ids=ids[:, :-1], use_cache=True)
        cache = output.past_key_values if hasattr(output, "past_key_values") else output.cache_params
        with counter:
            model(input_ids=ids[:, -1:], **{CACHE: cache}, use_cache=True)
    counts = {name: sum(operators.values()) for name, operators in counter.get_flop_counts().items()}
    stack = find_stack(model)
    modules = {id(module): name for name, module in model.named_modules()}
    top = type(model).__name__
    layers = [float(counts[f"{top}.{modules[id(layer)]}"]) for layer in stack.layers]
    return layers, float(counts[f"{top}.{modules[id(model.get_output_embeddings())]}"])


@pytest.mark.parametrize("name", CONFIGS)
def test_one_token_costs_what_torch_counts(name: str) -> None:
    model = build(CONFIGS[name])
    shape = measure_shape(model, find_stack(model))
    layers, head = count_one_token(model, POSITION)
    np.testing.assert_allclose(layer_flops(shape, POSITION), layers, rtol=0.01)
    assert head_flops(shape) == pytest.approx(head, rel=0.01)


@pytest.mark.parametrize("name", ["llama grouped-query", "mixtral experts", "deepseek-v3 latent attention"])
def test_a_batch_costs_what_torch_counts(name: str) -> None:
    model = build(CONFIGS[name])
    shape = measure_shape(model, find_stack(model))
    layers, head = count_one_token(model, POSITION, batch=3)
    np.testing.assert_allclose(layer_flops(shape, POSITION, batch=3), layers, rtol=0.01)
    assert head_flops(shape, batch=3) == pytest.approx(head, rel=0.01)


@pytest.mark.parametrize("name", RECURRENT)
def test_a_recurrent_layer_costs_what_torch_counts_and_its_elementwise_recurrence(name: str) -> None:
    model = build(RECURRENT[name])
    shape = measure_shape(model, find_stack(model))
    layers, _ = count_one_token(model, POSITION)
    # The counter sees products of matrices only: not the elementwise recurrence, but the state's read-out (2
    # FLOPs an element) in the families that write it as one.
    hidden = np.array([STATE_FLOPS * layer.state_elements for layer in shape.layers])
    seen = layer_flops(shape, POSITION) - hidden + 2 * STATE_PRODUCTS.get(name, 0)
    np.testing.assert_allclose(seen, layers, rtol=0.01)


def test_the_attention_term_grows_as_torch_counts_it() -> None:
    model = build(CONFIGS["llama grouped-query"])
    shape = measure_shape(model, find_stack(model))
    near, _ = count_one_token(model, 10)
    far, _ = count_one_token(model, 210)
    grown = layer_flops(shape, 210) - layer_flops(shape, 10)
    np.testing.assert_allclose(grown, np.array(far) - np.array(near), rtol=1e-12)


def test_key_value_projection_costs_what_torch_counts() -> None:
    model = build(CONFIGS["llama grouped-query"])
    shape = measure_shape(model, find_stack(model))
    hidden = torch.zeros(1, 1, 128)
    attention = model.model.layers[0].self_attn
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        attention.k_proj(hidden)
        attention.v_proj(hidden)
    np.testing.assert_allclose(key_value_flops(shape, POSITION), float(counter.get_total_flops()), rtol=0.01)
