"""FLOPs and bytes by hand, and the FLOPs of small models of real families against torch's own counter."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any, NamedTuple

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

from offramp.costs.counting import (
    STATE_FLOPS,
    depth_fractions,
    head_bytes,
    head_flops,
    key_value_bytes,
    key_value_flops,
    layer_bytes,
    layer_flops,
    probe_bytes,
    probe_flops,
)
from offramp.costs.probes import PROBES, ProbeSizes
from offramp.costs.token import TokenCosts, token_costs
from offramp.errors import InputError
from offramp.kit.typed import from_json, to_json
from offramp.models.discovery import find_stack
from offramp.models.measuring import measure_shape
from offramp.models.shape import LayerShape, ModelShape

FULL = LayerShape("attention", 1000, 1000, 200, 20, 40, None, 0)
WINDOWED = LayerShape("attention", 1000, 1000, 200, 20, 40, 8, 0)
EXPERTS = LayerShape("attention", 9000, 1500, 200, 20, 40, None, 0)
RECURRENT = LayerShape("recurrent", 800, 800, 0, 0, 0, None, 64)
SHAPE = ModelShape((FULL, WINDOWED, EXPERTS, RECURRENT), 10, 100, 10, 1000, 2)


class Prices(NamedTuple):
    """The same step priced in both units."""

    bytes: TokenCosts
    flops: TokenCosts


def token_prices(shape: ModelShape, position: float, **options: Any) -> Prices:
    return Prices(*(token_costs(shape, position, unit, **options) for unit in Prices._fields))


def test_layer_flops_by_hand() -> None:
    # Position 11 attends to 12 positions, 8 within the window.
    expected = [
        2 * 1000 + 4 * 40 * 12,
        2 * 1000 + 4 * 40 * 8,
        2 * 1500 + 4 * 40 * 12,
        2 * 800 + 5 * 64,
    ]
    np.testing.assert_array_equal(layer_flops(SHAPE, 11), expected)


def test_layer_bytes_by_hand() -> None:
    # Weights, K,V of the attended positions read, this token's written; a state is read and written.
    expected = [
        2 * (1000 + 20 * 12 + 20),
        2 * (1000 + 20 * 8 + 20),
        2 * (1500 + 20 * 12 + 20),
        2 * (800 + 2 * 64),
    ]
    np.testing.assert_array_equal(layer_bytes(SHAPE, 11), expected)


def test_head_probe_and_repair_by_hand() -> None:
    assert head_flops(SHAPE) == 2 * 1010
    assert head_bytes(SHAPE) == 2 * 1010
    assert probe_flops(SHAPE) == 2 * 1010 + 6 * 100
    assert probe_bytes(SHAPE) == 2 * 1010 + 8 * 100
    np.testing.assert_array_equal(key_value_flops(SHAPE, 11), [400, 400, 400, layer_flops(SHAPE, 11)[3]])
    np.testing.assert_array_equal(key_value_bytes(SHAPE, 11), [440, 440, 440, layer_bytes(SHAPE, 11)[3]])


def test_depth_fractions_are_shares_of_the_layers_alone() -> None:
    flops = layer_flops(SHAPE, 3)
    x = depth_fractions(SHAPE, np.array([1, 3, 4]), 3)
    np.testing.assert_allclose(x, [flops[0] / flops.sum(), flops[:3].sum() / flops.sum(), 1.0])
    bigger_head = ModelShape(SHAPE.layers, 10, 10_000, 10, 100_000, 2)
    np.testing.assert_array_equal(depth_fractions(bigger_head, np.array([1, 3, 4]), 3), x)


def test_probes_by_hand() -> None:
    # Hidden size 10, tail 10, 2 bytes an element.
    sizes = ProbeSizes(shortlist=20, hidden=4, candidates=3)
    prices = token_prices(SHAPE, 11, sizes=sizes)
    network = 4 * (3 * 3 + 1)
    assert prices.flops.probes == {
        "full head": 2 * 1010 + 6 * 100,
        "restricted head": 2 * (10 + 200) + 6 * 20,
        "candidates": 2 * (10 + 30) + 2 * network,
        "cosine": 60,
        "classifier": 20,
        "network": 2 * 4 * 11,
    }
    assert prices.bytes.probes == {
        "full head": 2 * 1010 + 8 * 100,
        "restricted head": 2 * (10 + 200) + 8 * 20,
        "candidates": 2 * (10 + 30) + 2 * network,
        "cosine": 0,
        "classifier": 20,
        "network": 2 * (40 + 4),
    }


def test_a_lens_is_added_where_logits_are_read_at_an_exit() -> None:
    plain, lens = token_prices(SHAPE, 11), token_prices(SHAPE, 11, lens=True)
    assert lens.flops.exit_head - plain.flops.exit_head == 2 * 10 * 10
    assert lens.bytes.exit_head - plain.bytes.exit_head == 2 * 10 * 11
    assert (lens.flops.head, lens.bytes.head) == (plain.flops.head, plain.bytes.head)
    for name, kind in PROBES.items():
        added = lens.bytes.probes[name] - plain.bytes.probes[name]
        assert added == (2 * 10 * 11 if kind.reads_logits else 0)


def test_a_network_behind_a_lens_by_hand() -> None:
    sizes = ProbeSizes(mlp_units=7)
    lens, network = token_prices(SHAPE, 11, lens=True), token_prices(SHAPE, 11, lens=True, sizes=sizes)
    # Three products of 10 x 7 weights, and the norm's 10 weights of 2 bytes.
    added = {"flops": 2 * 3 * 10 * 7, "bytes": 2 * (3 * 10 * 7 + 10)}
    for unit, more in added.items():
        before, after = getattr(lens, unit), getattr(network, unit)
        assert after.exit_head - before.exit_head == more
        assert after.head == before.head
        for name, kind in PROBES.items():
            assert after.probes[name] - before.probes[name] == (more if kind.reads_logits else 0)
    without = token_prices(SHAPE, 11, sizes=sizes)
    assert without.flops.exit_head == token_prices(SHAPE, 11).flops.exit_head, "no lens, no network behind it"


def test_a_lens_of_low_rank_and_a_network_without_a_lens_by_hand() -> None:
    # Two products of 10 x 3 weights and a bias of 10; three of 10 x 7 and a norm; 2 bytes each.
    low, alone = 2 * 10 * 3, 3 * 10 * 7
    for sizes, weights, vectors in (
        (ProbeSizes(lens_rank=3), low, 10),
        (ProbeSizes(lens_rank=0, mlp_units=7), alone, 10),
        (ProbeSizes(lens_rank=3, mlp_units=7), low + alone, 20),
    ):
        plain, read = token_prices(SHAPE, 11), token_prices(SHAPE, 11, lens=True, sizes=sizes)
        assert read.flops.exit_head - plain.flops.exit_head == 2 * weights
        assert read.bytes.exit_head - plain.bytes.exit_head == 2 * (weights + vectors)
        assert read.bytes.probes["cosine"] == plain.bytes.probes["cosine"]


def test_a_batch_reads_weights_once_and_everything_else_per_token() -> None:
    one, four = token_prices(SHAPE, 11), token_prices(SHAPE, 11, batch=4)
    np.testing.assert_allclose(four.flops.layers, 4 * one.flops.layers)
    np.testing.assert_allclose(four.flops.key_value, 4 * one.flops.key_value)
    assert four.flops.head == 4 * one.flops.head
    assert four.flops.probes["network"] == 4 * one.flops.probes["network"]
    assert four.bytes.layers[0] == 2 * (1000 + 4 * (20 * 12 + 20))
    assert four.bytes.layers[3] == 2 * (800 + 4 * 2 * 64)
    assert four.bytes.key_value[0] == 2 * (200 + 4 * 20)
    assert four.bytes.head == one.bytes.head
    assert four.bytes.probes["full head"] == 2 * 1010 + 4 * 8 * 100
    assert (four.bytes.batch, four.flops.batch) == (4, 4)


def test_a_batch_reads_the_experts_that_it_is_expected_to_meet() -> None:
    layer = LayerShape("attention", 9000, 3000, 200, 20, 40, None, 0, 4, 1, 8000)
    shape = ModelShape((layer,), 10, 100, 10, 1000, 2)
    own = 20 * 12 + 20  # K,V at position 11
    # 4 experts of 2,000; two tokens meet 4 x (1 - (3/4)^2) = 1.75 of them, beside the 1,000 that all share.
    assert layer_bytes(shape, 11, batch=1)[0] == 2 * (3000 + own)
    assert layer_bytes(shape, 11, batch=2)[0] == pytest.approx(2 * (1000 + 1.75 * 2000 + 2 * own))
    assert layer_bytes(shape, 11, batch=10_000)[0] == pytest.approx(2 * (9000 + 10_000 * own))


def test_a_latent_is_unpacked_for_every_attended_position() -> None:
    layer = dataclasses.replace(FULL, expansion_parameters=50)
    shape = ModelShape((layer,), 10, 100, 10, 1000, 2)
    # The token's own position is among the active parameters.
    assert layer_flops(shape, 11)[0] == layer_flops(SHAPE, 11)[0] + 2 * 50 * 11
    assert layer_bytes(shape, 11)[0] == layer_bytes(SHAPE, 11)[0]


def test_quantised_layers_are_charged_their_own_bytes() -> None:
    # 1.25 bytes a weight instead of 2; K and V, recurrent states and the head keep 2.
    layers = tuple(dataclasses.replace(layer, element_bytes=1.25) for layer in SHAPE.layers)
    quantised = dataclasses.replace(SHAPE, layers=layers)
    np.testing.assert_array_equal(
        layer_bytes(quantised, 11, batch=3),
        [
            1250 + 3 * 2 * (20 * 12 + 20),
            1250 + 3 * 2 * (20 * 8 + 20),
            1875 + 3 * 2 * (20 * 12 + 20),
            1000 + 3 * 2 * (2 * 64),
        ],
    )
    np.testing.assert_array_equal(
        key_value_bytes(quantised, 11),
        [250 + 2 * 20, 250 + 2 * 20, 250 + 2 * 20, layer_bytes(quantised, 11)[3]],
    )
    np.testing.assert_array_equal(layer_flops(quantised, 11), layer_flops(SHAPE, 11))
    assert head_bytes(quantised) == head_bytes(SHAPE)
    assert probe_bytes(quantised) == probe_bytes(SHAPE)
    assert from_json(ModelShape, to_json(quantised)) == quantised


def test_quantised_experts_are_charged_their_own_bytes() -> None:
    # 8 experts of 100 weights each, 2 a token, beside 300 others: of 2 tokens 3.5 distinct ones are expected.
    experts = dataclasses.replace(
        EXPERTS,
        active_parameters=500,
        experts=8,
        experts_per_token=2,
        expert_parameters=800,
        element_bytes=0.5,
    )
    shape = dataclasses.replace(SHAPE, layers=(experts,))
    assert layer_bytes(shape, 0, batch=2)[0] == pytest.approx((300 + 350) * 0.5 + 2 * 2 * (20 + 20))


@pytest.mark.parametrize("batch", [0, -1])
def test_a_batch_of_nothing_is_refused(batch: int) -> None:
    for count in (layer_flops, layer_bytes, key_value_flops, key_value_bytes):
        with pytest.raises(InputError, match="decodes nothing"):
            count(SHAPE, 0, batch)


@pytest.mark.parametrize("state_elements", [64, 0])  # 0: a state that could not be measured
def test_skipping_a_recurrent_layer_saves_nothing(state_elements: int) -> None:
    layer = dataclasses.replace(RECURRENT, state_elements=state_elements)
    recurrent = ModelShape((layer,) * 3, 10, 100, 10, 1000, 2)
    until_exit = token_costs(recurrent, 5, "bytes").until_exit
    assert until_exit[0] == until_exit[1] == until_exit[2]


@pytest.mark.parametrize("position", [-1.0, float("nan"), float("inf"), 1e300])
def test_a_position_that_is_none_is_refused(position: float) -> None:
    for count in (layer_flops, layer_bytes, key_value_flops, key_value_bytes):
        with pytest.raises(InputError, match="not a position") as error:
            count(SHAPE, position)
        assert error.value.fix.endswith("to 1,000,000,000,000,000")


def test_an_unknown_unit_is_refused() -> None:
    with pytest.raises(InputError, match="no unit 'seconds'"):
        token_costs(SHAPE, 0, "seconds")


@pytest.mark.parametrize("exit", [0, 5])
def test_an_exit_outside_the_model_is_refused(exit: int) -> None:
    with pytest.raises(InputError, match=f"exit {exit} is outside"):
        depth_fractions(SHAPE, np.array([1, exit]), 0)


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
RECURRENT_CONFIGS: dict[str, Any] = {
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
    hf = AutoModelForCausalLM.from_config(config, attn_implementation="eager", dtype=torch.float32)
    # Without gradients: the counter's hooks look for the graph of weights that are arguments.
    return hf.eval().requires_grad_(False)


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


@pytest.mark.parametrize("name", RECURRENT_CONFIGS)
def test_a_recurrent_layer_costs_what_torch_counts_and_its_elementwise_recurrence(name: str) -> None:
    model = build(RECURRENT_CONFIGS[name])
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
