"""Checkpoint folders with random weights, as large as asked for: made shard by shard, never whole in memory.

Shapes and names of the tensors are those of transformers' Llama, and of Mixtral with one tensor per expert.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

SHARD_BYTES = 1_000_000_000
INDEX = "model.safetensors.index.json"
MADE_AS = "random_checkpoint.json"
STANDARD_DEVIATION = 0.02
# Tensors of a shard are slices of one block of random numbers that begin at different places.
SHIFT = 65_537
SHIFTS = 16

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Size:
    """The class of a configuration in transformers and what it is called with."""

    config_class: str
    values: dict[str, Any]


def _size(
    config_class: str, hidden: int, layers: int, heads: tuple[int, int], inner: int, **more: Any
) -> Size:
    values = {
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads[0],
        "num_key_value_heads": heads[1],
        "intermediate_size": inner,
        "vocab_size": 32_000,
        "max_position_embeddings": 4096,
        "initializer_range": STANDARD_DEVIATION,
        "tie_word_embeddings": False,
    }
    return Size(config_class, values | more)


SIZES = {
    "tiny": _size("LlamaConfig", 64, 4, (4, 2), 96, vocab_size=320),
    "tiny-moe": _size("MixtralConfig", 64, 3, (4, 2), 96, vocab_size=320, num_local_experts=4),
    "1b": _size("LlamaConfig", 2048, 16, (32, 8), 8192),
    "7b": _size("LlamaConfig", 4096, 32, (32, 32), 11_008),
    "moe": _size("MixtralConfig", 2048, 25, (32, 8), 5632, num_local_experts=8),
}
"""As large as Llama 3.2 1B and Llama 2 7B, with a vocabulary of 32,000; a mixture of 8 experts of 7.3 B."""


def narrowed(size: Size) -> Size:
    """As many layers, experts and tokens, with a hidden size of 64: what it runs is the same, in no time."""
    narrow = {"hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2, "intermediate_size": 96}
    return Size(size.config_class, size.values | narrow)


def write_checkpoint(folder: Path, size: Size, *, seed: int = 0) -> None:
    """Write a random model in bfloat16 with a byte-level tokenizer, or leave the one that is there.

    Norms are ones, everything else is normal with the standard deviation of an initialisation.

    Raises SystemExit if the folder holds something else, or the disk is too small.
    """
    made_as = {"config_class": size.config_class, "seed": seed, **size.values}
    record = folder / MADE_AS
    if record.exists() and json.loads(record.read_text(encoding="utf-8")) == made_as:
        return
    if folder.exists() and any(folder.iterdir()):
        raise SystemExit(f"{folder} holds something else than this model: give another --folder")
    shapes = tensor_shapes(size.values)
    total = sum(_bytes(shape) for shape in shapes.values())
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < total:
        raise SystemExit(f"{folder}: {total:,} bytes are needed, {free:,} are free: give another --folder")
    _write_config(folder, size)
    write_byte_tokenizer(folder)
    _write_weights(folder, shapes, total, seed)
    record.write_text(json.dumps(made_as), encoding="utf-8")


def tensor_shapes(values: dict[str, Any]) -> Shapes:
    """Shapes of all tensors by their names in a checkpoint, in the order of the forward pass."""
    hidden, vocabulary = values["hidden_size"], values["vocab_size"]
    shapes: Shapes = {"model.embed_tokens.weight": (vocabulary, hidden)}
    for layer in range(values["num_hidden_layers"]):
        prefix = f"model.layers.{layer}"
        shapes |= {f"{prefix}.{name}.weight": shape for name, shape in _layer_shapes(values).items()}
    return shapes | {"model.norm.weight": (hidden,), "lm_head.weight": (vocabulary, hidden)}


def _layer_shapes(values: dict[str, Any]) -> Shapes:
    hidden, inner = values["hidden_size"], values["intermediate_size"]
    narrow = hidden // values["num_attention_heads"] * values["num_key_value_heads"]
    shapes: Shapes = {
        "input_layernorm": (hidden,),
        "self_attn.q_proj": (hidden, hidden),
        "self_attn.k_proj": (narrow, hidden),
        "self_attn.v_proj": (narrow, hidden),
        "self_attn.o_proj": (hidden, hidden),
        "post_attention_layernorm": (hidden,),
    }
    experts = values.get("num_local_experts")
    if experts is None:
        gate, up, down = (f"mlp.{name}_proj" for name in ("gate", "up", "down"))
        return shapes | {gate: (inner, hidden), up: (inner, hidden), down: (hidden, inner)}
    shapes["block_sparse_moe.gate"] = (experts, hidden)
    for expert in range(experts):
        gate, down, up = (f"block_sparse_moe.experts.{expert}.{name}" for name in ("w1", "w2", "w3"))
        shapes |= {gate: (inner, hidden), down: (hidden, inner), up: (inner, hidden)}
    return shapes


def _bytes(shape: tuple[int, ...]) -> int:
    return math.prod(shape) * torch.bfloat16.itemsize


def _write_config(folder: Path, size: Size) -> None:
    import transformers

    config = getattr(transformers, size.config_class)(**size.values, bos_token_id=0, eos_token_id=1)
    config.architectures = [size.config_class.replace("Config", "ForCausalLM")]
    config.dtype = torch.bfloat16
    config.save_pretrained(folder)


def write_byte_tokenizer(folder: Path) -> None:
    """A tokenizer with one token per byte, a beginning and an end, and nothing put in front of a text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: number for number, token in enumerate(["<s>", "</s>", *alphabet])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    wrap: Any = PreTrainedTokenizerFast
    wrap(tokenizer_object=backend, bos_token="<s>", eos_token="</s>").save_pretrained(folder)


def _write_weights(folder: Path, shapes: Shapes, total: int, seed: int) -> None:
    from safetensors.torch import save_file

    shards = list(_shards(shapes))
    generator = torch.Generator().manual_seed(seed)
    largest = max(math.prod(shape) for shape in shapes.values())
    weight_map: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        block = torch.randn(largest + SHIFT * SHIFTS, generator=generator)
        block = block.mul_(STANDARD_DEVIATION).bfloat16()
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _tensor(block, place, name, shapes[name]) for place, name in enumerate(names)}
        save_file(tensors, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(names, file)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=1), encoding="utf-8")


def _shards(shapes: Shapes) -> Iterator[list[str]]:
    """Names of consecutive tensors, up to SHARD_BYTES together."""
    names: list[str] = []
    for name, shape in shapes.items():
        if names and sum(_bytes(shapes[other]) for other in names) + _bytes(shape) > SHARD_BYTES:
            yield names
            names = []
        names.append(name)
    yield names


def _tensor(block: torch.Tensor, place: int, name: str, shape: tuple[int, ...]) -> torch.Tensor:
    if "norm" in name:
        return torch.ones(shape, dtype=torch.bfloat16)
    start = place % SHIFTS * SHIFT
    return block[start : start + math.prod(shape)].reshape(shape).clone()


def shards_of(folder: Path) -> list[Path]:
    """The weight files of a folder."""
    return sorted(folder.glob("*.safetensors"))


def forget_cached(paths: list[Path]) -> None:
    """Ask the operating system to drop the files' pages from memory: the next read is from the disk."""
    for path in paths:
        with path.open("rb") as file:
            os.fsync(file.fileno())  # a page that is not yet written would stay
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read_once(paths: list[Path]) -> None:
    """Read the files from the first byte to the last, into the same few megabytes."""
    buffer = bytearray(16 * 1024 * 1024)
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass
