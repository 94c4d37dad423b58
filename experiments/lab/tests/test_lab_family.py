"""The lab's family: what transformers' Llama and GPT-2 compute, and exits and decoding as any other's."""

from __future__ import annotations

import itertools
import math
import tomllib
from pathlib import Path
from typing import Any

import pytest
import torch
from family_decoding import check_decoding
from family_table import independent_readout
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

import offramp
from offramp.models.discovery import find_stack, probe_ids
from offramp.models.source import find_source
from offramp.models.streaming import load_streamed
from offramp_lab.family import LabConfig, LabForCausalLM, register
from tiny_models import write_tokenizer

PROJECT = Path(__file__).parents[1] / "pyproject.toml"
SIZES: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 32,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 128,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 0,
}
GPT2_LIKE = {"norm": "layernorm", "mlp": "gelu", "positions": "learned", "num_key_value_heads": 4}
CASES = [
    {"norm": norm, "mlp": mlp, "positions": positions, "num_key_value_heads": heads, "residual": residual}
    for norm, mlp, positions, heads, residual in itertools.product(
        ("layernorm", "rmsnorm"),
        ("gelu", "swiglu"),
        ("learned", "rotary"),
        (4, 2),
        ("plain", "depth_scaled"),
    )
]


def make(**switches: Any) -> Any:
    """A model with weights that no switch leaves at one or zero."""
    torch.manual_seed(0)
    model: Any = LabForCausalLM(LabConfig(**SIZES, **switches)).eval().requires_grad_(False)
    for name, weight in model.named_parameters():
        if "norm" in name:
            weight.normal_(1.0, 0.3)
        else:
            weight.mul_(4.0)
    return model


def logits(model: Any, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=ids).logits
    return found


def test_the_llama_like_corner_is_llama_bit_for_bit() -> None:
    model = make(num_key_value_heads=2)
    llama: Any = LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=2)).eval()
    llama.load_state_dict(model.state_dict())
    ids = torch.arange(80).reshape(2, 40) % 320
    assert torch.equal(logits(model, ids), logits(llama, ids))


def test_the_gpt2_like_corner_is_gpt2_without_biases() -> None:
    model = make(**GPT2_LIKE)
    sizes = {"vocab_size": 320, "n_embd": 32, "n_layer": 4, "n_head": 4, "n_inner": 48, "n_positions": 128}
    gpt2: Any = GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).eval()
    ours, theirs = model.state_dict(), gpt2.state_dict()
    for name, weight in theirs.items():
        if name.endswith("bias") and ".ln_" not in name:
            weight.zero_()
    pairs = {"wte.weight": "embed_tokens.weight", "wpe.weight": "embed_positions.weight"}
    pairs |= {f"ln_f.{part}": f"norm.{part}" for part in ("weight", "bias")}
    for layer in range(4):
        here, there = f"layers.{layer}.", f"h.{layer}."
        qkv = [ours[f"model.{here}self_attn.{one}_proj.weight"] for one in "qkv"]
        theirs[f"transformer.{there}attn.c_attn.weight"].copy_(torch.cat(qkv).T)
        for ln, norm in (("ln_1", "input_layernorm"), ("ln_2", "post_attention_layernorm")):
            pairs |= {f"{there}{ln}.{part}": f"{here}{norm}.{part}" for part in ("weight", "bias")}
        for name, own in (
            ("attn.c_proj", "self_attn.o_proj"),
            ("mlp.c_fc", "mlp.up_proj"),
            ("mlp.c_proj", "mlp.down_proj"),
        ):
            theirs[f"transformer.{there}{name}.weight"].copy_(ours[f"model.{here}{own}.weight"].T)
    for name, own in pairs.items():
        theirs[f"transformer.{name}"].copy_(ours[f"model.{own}"])
    ids = torch.arange(80).reshape(2, 40) % 320
    expected = logits(gpt2, ids)
    torch.testing.assert_close(logits(model, ids), expected, rtol=0, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("norm", ["layernorm", "rmsnorm"])
def test_depth_scaled_norms_give_less_with_depth_and_the_final_one_does_not(norm: str) -> None:
    plain, scaled = make(norm=norm), make(norm=norm, residual="depth_scaled")
    hidden = torch.randn(2, 5, 32)
    for place, (one, other) in enumerate(zip(plain.model.layers, scaled.model.layers, strict=True), start=1):
        for name in ("input_layernorm", "post_attention_layernorm"):
            expected = getattr(one, name)(hidden) / math.sqrt(place)
            torch.testing.assert_close(getattr(other, name)(hidden), expected)
    assert torch.equal(plain.model.norm(hidden), scaled.model.norm(hidden))


@pytest.mark.parametrize("switches", CASES, ids=lambda one: "-".join(map(str, one.values())))
def test_every_combination_is_read_out_exactly_at_every_exit(switches: dict[str, Any]) -> None:
    model = make(**switches)
    stack = find_stack(model)
    assert (stack.readout_kind, len(stack), stack.largest_difference) == ("fast", 4, 0.0)
    ids = probe_ids(model, 11)
    hidden: list[torch.Tensor] = []
    stack.capture(ids, lambda index, before, after: hidden.append(after.clone()))
    with torch.no_grad():
        for exit in (1, 3, 4):
            expected = independent_readout(model, stack.layers, ids, exit)
            assert torch.equal(stack.readout(hidden[exit - 1]), expected)


@pytest.mark.parametrize("switches", [GPT2_LIKE, {"num_key_value_heads": 2, "residual": "depth_scaled"}])
def test_it_is_decoded_as_any_other_family(switches: dict[str, Any]) -> None:
    decoding = check_decoding(make(**switches))
    assert decoding.refused is None
    assert decoding.reasons == ()


def test_a_folder_of_it_is_loaded_whole_and_layer_by_layer(tmp_path: Path) -> None:
    register()
    write_tokenizer(tmp_path)
    model = make(**GPT2_LIKE, residual="depth_scaled")
    model.save_pretrained(tmp_path)
    loaded = offramp.load_model(tmp_path)
    assert type(loaded.hf).__name__ == "LabForCausalLM"
    assert loaded.context_length == 128
    ids = torch.arange(40)[None]
    assert torch.equal(logits(loaded.hf, ids), logits(model, ids))
    streamed = load_streamed(find_source(str(tmp_path)), dtype="float32")
    assert streamed.streamed is not None
    assert (len(streamed.stack), streamed.context_length) == (4, 128)


def test_offramp_knows_the_family_of_a_folder_once_the_lab_is_installed() -> None:
    (entry,) = tomllib.loads(PROJECT.read_text())["project"]["entry-points"]["offramp.model_families"].items()
    assert entry == ("offramp_lab", "offramp_lab.family:register")
    assert LabConfig.model_type == entry[0]
