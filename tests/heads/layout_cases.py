"""Tiny files in the layouts of others, and what a plain computation reads from them at each exit."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tracing_models import workload_of

from offramp.heads.exit_heads import ExitHeads
from offramp.models.model import Model
from offramp.tracing.tracer import trace

TEXTS = ("3 1 4 1 5 9 2 6 5 3 5", "8 9 7 9 3 2 3 8 4 6")
HIDDEN, VOCABULARY, UNITS, PADDED = 32, 61, 24, 128

Tensors = dict[str, torch.Tensor]
Reading = Callable[[int, torch.Tensor], torch.Tensor]
"""Logits [positions, vocabulary] of an exit and the states [positions, hidden] after its layer."""


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    """Numbers that change with the shape and the seed."""
    generator = torch.Generator().manual_seed(seed * 1009 + sum(shape))
    return torch.randn(*shape, generator=generator)


def rms_norm(state: torch.Tensor, weight: torch.Tensor, epsilon: float) -> torch.Tensor:
    """As every one of these programs writes it."""
    return weight * (state * torch.rsqrt(state.square().mean(-1, keepdim=True) + epsilon))


def write(folder: Path, tensors: Tensors, config: dict[str, Any] | None) -> Path:
    """A folder with tensors and what describes them."""
    folder.mkdir(exist_ok=True)
    save_file(
        {name: tensor.contiguous().clone() for name, tensor in tensors.items()}, folder / "exits.safetensors"
    )
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


def base_of(model: Model) -> Tensors:
    """The weights of the model itself, without what is tied."""
    state = model.hf.state_dict()
    return {name: tensor for name, tensor in state.items() if name != "lm_head.weight"}


def balcony_tensors(exits: Sequence[int], *, decoder: str, untied: bool) -> Tensors:
    """What `exit_modules` of NestedLlamaModel holds. decoder: of each exit's layer "none", "mlp" or "all"."""
    found: Tensors = {}
    for place, exit in enumerate(exits):
        prefix = f"model.exit_modules.{place}"
        number = 0
        if decoder != "none":
            number = 1
            layer = {
                "input_layernorm.weight": 1 + 0.3 * random(HIDDEN, seed=exit),
                "mlp.gate_proj.weight": 0.3 * random(UNITS, HIDDEN, seed=exit),
                "mlp.up_proj.weight": 0.3 * random(UNITS, HIDDEN, seed=exit + 50),
                "mlp.down_proj.weight": 0.3 * random(HIDDEN, UNITS, seed=exit),
            }
            if decoder == "all":
                layer["post_attention_layernorm.weight"] = torch.ones(HIDDEN)
                layer |= {f"self_attn.{name}_proj.weight": random(HIDDEN, HIDDEN) for name in "qkvo"}
            found |= {f"{prefix}.0.{name}": tensor for name, tensor in layer.items()}
        found[f"{prefix}.{number}.weight"] = 1 + 0.3 * random(HIDDEN, seed=exit + 100)
        if untied:
            found[f"{prefix}.{number + 1}.weight"] = random(VOCABULARY, HIDDEN, seed=exit)
    return found


def balcony_reading(model: Model, tensors: Tensors, exits: Sequence[int], epsilon: float) -> Reading:
    """NestedLlamaDecoderLayer without attention, the exit's norm, and its head or the model's."""

    def read(exit: int, state: torch.Tensor) -> torch.Tensor:
        part = {
            name.removeprefix(f"model.exit_modules.{exits.index(exit)}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"model.exit_modules.{exits.index(exit)}.")
        }
        number = 0
        if "0.input_layernorm.weight" in part:
            number = 1
            state = rms_norm(state, part["0.input_layernorm.weight"], epsilon)
            gate = F.silu(state @ part["0.mlp.gate_proj.weight"].t())
            up = state @ part["0.mlp.up_proj.weight"].t()
            state = state + (gate * up) @ part["0.mlp.down_proj.weight"].t()
        state = rms_norm(state, part[f"{number}.weight"], epsilon)
        return state @ part.get(f"{number + 1}.weight", model.hf.lm_head.weight).t()

    return read


def ee_llm_tree(model: Model, exits: Sequence[int], arguments: dict[str, Any]) -> dict[str, Any]:
    """`model` of a Megatron checkpoint: EE-LLM's exits as `state_dict_for_save_checkpoint` nests them."""
    encoder: Tensors = {}
    for number in exits:
        prefix = f"layers.{number - 1}"
        if arguments.get("use_exit_norm"):
            encoder[f"{prefix}.exit_norm.weight"] = 1 + 0.3 * random(HIDDEN, seed=number)
            if arguments.get("normalization") != "RMSNorm":
                encoder[f"{prefix}.exit_norm.bias"] = random(HIDDEN, seed=number + 50)
        if arguments.get("use_exit_mlp"):
            encoder[f"{prefix}.mlp.branch.dense_h_to_4h.weight"] = random(2 * UNITS, HIDDEN)
        if arguments.get("use_exit_block"):
            encoder[f"{prefix}.exit_block.self_attention.dense.weight"] = random(HIDDEN, HIDDEN)
    embedding = torch.zeros(PADDED, HIDDEN)
    embedding[:VOCABULARY] = model.hf.get_input_embeddings().weight
    tree: dict[str, Any] = {"embedding": {"word_embeddings": {"weight": embedding}}, "encoder": encoder}
    if arguments.get("untie_exit_output_weights"):
        tree["exit_output_layer"] = {
            f"{place}.weight": random(PADDED, HIDDEN, seed=place) for place in range(len(exits))
        }
    return {"language_model": tree}


def ee_llm_reading(model: Model, tree: dict[str, Any], arguments: dict[str, Any]) -> Reading:
    """`_forward_exit` of EE-LLM without a block: the exit's norm, and its output weights or the embedding."""
    encoder, numbers = tree["language_model"]["encoder"], arguments["exit_layer_nums"]

    def read(exit: int, state: torch.Tensor) -> torch.Tensor:
        number = exit + 1 if arguments.get("pre_exit") else exit
        prefix, epsilon = f"layers.{number - 1}.exit_norm", arguments.get("norm_epsilon", 1e-5)
        if arguments.get("use_exit_norm") and arguments.get("normalization") == "RMSNorm":
            state = rms_norm(state, encoder[f"{prefix}.weight"], epsilon)
        elif arguments.get("use_exit_norm"):
            weight, bias = encoder[f"{prefix}.weight"], encoder[f"{prefix}.bias"]
            state = F.layer_norm(state, (HIDDEN,), weight, bias, epsilon)
        if arguments.get("untie_exit_output_weights"):
            own = tree["language_model"]["exit_output_layer"][f"{numbers.index(number)}.weight"]
            return state @ own[:VOCABULARY].t()
        return state @ model.hf.lm_head.weight.t()

    return read


def flat(tree: dict[str, Any], prefix: str = "") -> Tensors:
    """The nested names joined by dots."""
    found: Tensors = {}
    for name, value in tree.items():
        found |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return found


def write_megatron(path: Path, tree: dict[str, Any], arguments: dict[str, Any]) -> None:
    """A checkpoint as Megatron saves it: a pickle with the arguments beside the model."""
    torch.save({"args": argparse.Namespace(**arguments), "iteration": 1, "model": tree}, path)


def require_read_so(model: Model, heads: ExitHeads, reading: Reading) -> None:
    """Every exit's best token and its probability are those of the plain computation."""
    traced = trace(
        model,
        workload_of(*TEXTS),
        tokens=100,
        context=40,
        heads=heads,
        exits=",".join(map(str, heads.exits)),
        progress=False,
    )
    tokens, probabilities = [], []
    for text in TEXTS:
        ids = torch.tensor([[int(word) for word in text.split()][:-1]])
        with torch.no_grad():
            states = model.hf(ids, output_hidden_states=True).hidden_states
            best = [reading(exit, states[exit][0]).softmax(-1).max(-1) for exit in heads.exits]
        tokens.append(torch.stack([one.indices for one in best], -1))
        probabilities.append(torch.stack([one.values for one in best], -1))
    np.testing.assert_array_equal(traced.top1[:, :-1], torch.cat(tokens).numpy())
    np.testing.assert_allclose(traced.max_prob[:, :-1], torch.cat(probabilities).numpy(), rtol=2e-4)
    assert not np.array_equal(traced.top1[:, 0], traced.top1[:, -1])
