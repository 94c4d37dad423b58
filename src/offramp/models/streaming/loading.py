"""`load_streamed`: a checked model whose layers stay on disk."""

from __future__ import annotations

from typing import Any

from offramp.errors import ModelError
from offramp.models.gguf_file import quiet_transformers
from offramp.models.loading import describe_model, load_tokenizer
from offramp.models.model import Model
from offramp.models.source import Source
from offramp.models.streaming.memory import (
    MemoryNeed,
    memory_need,
    needed_memory,
    weight_bytes,
    would_not_fit,
)
from offramp.models.streaming.shards import ShardedLayers, read_weights
from offramp.models.streaming.skeleton import Skeleton, build_skeleton, set_tensor
from offramp.models.streaming.twin import discover, plan_twin
from offramp.models.streaming.weight_map import WeightMap, map_weights
from offramp.models.weight_files import read_headers

__all__ = ["MemoryNeed", "load_streamed", "needed_memory", "weight_bytes", "would_not_fit"]


def load_streamed(
    source: Source, *, dtype: str, trust_remote_code: bool = False, memory_bytes: int | None = None
) -> Model:
    """Load everything of a model but its layers, which are read from its weight files one at a time.

    dtype: "float32" or "bfloat16". memory_bytes: what may be used for weights, None for no limit. The result
    has `Model.streamed`; its stack, shape and readouts are those of the whole model.

    Raises ModelError as `load_model` does, and if `memory_bytes` is too little (what is needed is named), if
    the weight files do not fit the config, or if the family cannot be run layer by layer. A weight that is
    not finite is refused when its layer is read.
    """
    with quiet_transformers():
        tokenizer = load_tokenizer(source, trust_remote_code=trust_remote_code)
        skeleton = build_skeleton(source, dtype=dtype, trust_remote_code=trust_remote_code)
        weight_map = map_weights(skeleton, read_headers(source.folder))
        twin = plan_twin(skeleton)
        need = memory_need(weight_map, twin)
        _check_memory(need, memory_bytes, source.name)
        _load_resident(skeleton, weight_map)
        streamed = ShardedLayers(skeleton, weight_map, need.resident_bytes)
        stack, shape = discover(skeleton, streamed, twin)
    return describe_model(
        skeleton.hf,
        tokenizer,
        stack=stack,
        shape=shape,
        name=source.name,
        identity=source.identity,
        dtype=dtype,
        source=source,
        streamed=streamed,
    )


def _check_memory(need: MemoryNeed, memory_bytes: int | None, name: str) -> None:
    if memory_bytes is not None and memory_bytes < need.streaming_bytes:
        raise ModelError(
            f"{memory_bytes:,} bytes are too few to read this model layer by layer: its weights need "
            f"{need.streaming_bytes:,} at a time ({need.resident_bytes:,} that stay in memory, and the layer "
            f"in use beside the next one, of up to {need.largest_layer_bytes:,} each)",
            where=name,
            fix=f"allow at least {need.streaming_bytes:,} bytes",
        )


def _load_resident(skeleton: Skeleton, weight_map: WeightMap) -> None:
    """Read what belongs to no layer, and tie what the model ties."""
    hf: Any = skeleton.hf
    for name, tensor in read_weights(hf, weight_map.resident, skeleton.name).items():
        set_tensor(hf, name, tensor)
    hf.tie_weights(missing_keys=set(weight_map.missing), recompute_mapping=False)
    hf.requires_grad_(False)
