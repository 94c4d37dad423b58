"""What tests of streamed models share: small random models on disk, in several shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from family_configs import build_family
from model_folders import write_tokenizer
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from offramp.models.calls import Recorder, first_tensor
from offramp.models.discovery import probe_ids
from offramp.models.model import Model
from offramp.models.process import quiet_transformers
from offramp.models.source import ModelFiles, find_source

INDEX = "model.safetensors.index.json"


def write_family(folder: Path, family: str, shard_size: str = "100KB") -> ModelFiles:
    """A small random model of a family as `save_pretrained` writes it, sharded, with a tokenizer."""
    with quiet_transformers():
        build_family(family).save_pretrained(folder, max_shard_size=shard_size)
    write_tokenizer(folder)
    return find_source(str(folder))


def shards(folder: Path) -> list[Path]:
    """The weight files, in order."""
    return sorted(folder.glob("*.safetensors"))


def edit_tensors(folder: Path, edit: Callable[[dict[str, Tensor]], None]) -> None:
    """Change the tensors of every shard, and write the index anew."""
    listed: dict[str, str] = {}
    for path in shards(folder):
        tensors = load_file(path)
        edit(tensors)
        save_file(tensors, path, metadata={"format": "pt"})
        listed |= dict.fromkeys(tensors, path.name)
    if (folder / INDEX).is_file():
        (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": listed}))


def layers_in_turn(model: Model) -> Iterator[nn.Module]:
    """Every layer of a streamed model with its weights, the next one read ahead."""
    assert model.streamed is not None
    last = model.layers - 1
    for index in range(model.layers):
        with model.streamed.layer(index, following=None if index == last else index + 1) as layer:
            yield layer


def two_documents(hf: Any, positions: int = 9) -> Tensor:
    """Token ids [2, positions]."""
    ids = probe_ids(hf, positions)
    return torch.cat([ids, ids.flip(1)])


def own_outputs(model: Model, ids: Tensor) -> list[Tensor]:
    """The output of every layer in the forward pass of a model that is in memory."""
    outputs: list[Tensor] = []
    model.stack.capture(ids, lambda index, before, after: outputs.append(after.clone()))
    return outputs


def driven_outputs(model: Model, ids: Tensor) -> list[Tensor]:
    """The output of every layer of a streamed model, run one by one."""
    outputs: list[Tensor] = []
    with torch.no_grad():
        hidden, calls = Recorder(model.stack)(input_ids=ids, use_cache=False)
        for call, layer in zip(calls, layers_in_turn(model), strict=True):
            arguments, keywords = call.arguments(hidden)
            hidden = first_tensor(layer(*arguments, **keywords))
            outputs.append(hidden.clone())
    return outputs
