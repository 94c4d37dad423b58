"""The layout ee-llm: exits of EE-LLM (arXiv 2312.04916) and EE-Tuning (arXiv 2402.00518).

As github.com/pan-x-c/EE-LLM saves them (read at commit 62488c6: megatron/model/transformer.py,
megatron/model/language_model.py, megatron/arguments.py), the nested names of a Megatron checkpoint joined by
dots, and the checkpoint's arguments as config.json.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Literal

from offramp.errors import InputError
from offramp.models.model import Model
from offramp.tracing.importing.base_weights import check_same
from offramp.tracing.importing.key_map import EXIT, PLACE, KeyMap, OutputKeys
from offramp.tracing.importing.layout import (
    WHY_ATTENTION,
    Config,
    Described,
    Layout,
    cannot_be_read,
    config_path,
    read_config,
)
from offramp.tracing.importing.tensors import Tensors

NAME = "ee-llm"
LAYERS = "language_model.encoder.layers"
HEAD = f"language_model.exit_output_layer.{PLACE}.weight"
NORM = f"{LAYERS}.{EXIT}.exit_norm"
EMBEDDING = "language_model.embedding.word_embeddings.weight"

WHY_MLP = (
    "an exit's MLP reads the state between attention and MLP of its layer and takes that MLP's place; exits "
    "of offramp read the state after a layer"
)


class _Config(Config):
    """Of the arguments that a checkpoint holds; what is not there has the arguments' default."""

    exit_layer_nums: list[int]
    pre_exit: bool = False
    use_exit_mlp: bool = False
    use_exit_block: bool = False
    use_exit_norm: bool = False
    untie_exit_output_weights: bool = False
    untie_embeddings_and_output_weights: bool = False
    normalization: Literal["LayerNorm", "RMSNorm"] = "LayerNorm"
    norm_epsilon: float = 1e-5
    apply_layernorm_1p: bool = False
    padded_vocab_size: int | None = None
    tensor_model_parallel_size: int = 1
    pipeline_model_parallel_size: int = 1


def _describe(path: Path, tensors: Tensors) -> Described:
    config = read_config(path, _Config, NAME)
    _require_whole(config, path)
    for used, part, why in (
        (config.use_exit_mlp, r"mlp\.branch", WHY_MLP),
        (config.use_exit_block, "exit_block", WHY_ATTENTION),
    ):
        if used:
            keys = [key for key in tensors.stored if re.fullmatch(rf"{LAYERS}\.\d+\.{part}\..*", key)]
            raise cannot_be_read(tensors, keys, why)
    layered = config.normalization == "LayerNorm"
    output = OutputKeys(
        weight=HEAD if config.untie_exit_output_weights else None,
        norm=("layer" if layered else "rms") if config.use_exit_norm else "none",
        norm_weight=f"{NORM}.weight" if config.use_exit_norm else None,
        norm_bias=f"{NORM}.bias" if config.use_exit_norm and layered else None,
        epsilon=config.norm_epsilon if config.use_exit_norm else None,
        rows=config.padded_vocab_size,
    )
    # Layers count from 1, keys from 0; an exit before its layer reads the state after the one before.
    before = int(config.pre_exit)
    exits = tuple(number - before for number in config.exit_layer_nums)
    key_map = KeyMap(exits, before, NAME, output=output)
    return Described(key_map, partial(_check_embedding, tensors=tensors), builds=False)


def _require_whole(config: _Config, path: Path) -> None:
    """Refuse one of several parts of a checkpoint, whose layers are counted anew, and what no exit has."""
    parts = config.tensor_model_parallel_size * config.pipeline_model_parallel_size
    where = str(config_path(path))
    if parts > 1:
        raise InputError(
            f"the checkpoint is split into {parts} parts, each of which counts its layers anew",
            where=where,
            fix="join them with EE-LLM's tools/convert_parallelism.sh (TP=1, PP=1), and convert the result",
        )
    if config.apply_layernorm_1p and config.use_exit_norm:
        raise InputError(
            "the norms' weights are stored less 1 (apply_layernorm_1p)",
            where=where,
            fix="add 1 to the weights of every exit_norm, and set apply_layernorm_1p to false",
        )
    if config.untie_embeddings_and_output_weights and not config.untie_exit_output_weights:
        raise InputError(
            "exits read by the embedding of a model whose output head is another, which EE-LLM cannot train",
            where=where,
            fix="give the arguments of the checkpoint that the tensors are of",
        )


def _check_embedding(model: Model, tensors: Tensors) -> str:
    return check_same(model, tensors, {EMBEDDING: model.hf.get_input_embeddings().weight})


EE_LLM = Layout(
    NAME,
    _describe,
    of_exits=rf"language_model\.exit_output_layer\..*|{LAYERS}\.\d+\.(exit_norm|exit_block|mlp\.branch)\..*",
)
