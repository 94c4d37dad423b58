"""Loading a model whose layers stay on disk, and how much memory that takes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from offramp.errors import ModelError
from offramp.models.checkpoint import read_headers
from offramp.models.loading import describe_model, load_tokenizer
from offramp.models.memory import WORKING_SHARE, available_memory
from offramp.models.model import Model
from offramp.models.quiet import quiet_transformers
from offramp.models.source import Source
from offramp.models.streaming.layers import ShardedLayers, read_weights
from offramp.models.streaming.partial_model import PartialModel, discover, plan_partial_model
from offramp.models.streaming.skeleton import Skeleton, build_skeleton, set_tensor
from offramp.models.streaming.weight_map import WeightMap, map_weights


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes of a model's weights in the dtype they are loaded in.

    whole_bytes: all of them. largest_layer_bytes: the largest layer. resident_bytes: what belongs to no layer
    (embedding, final norm, output head). streaming_bytes: the most that reading layer by layer holds at a
    time: the resident weights with the layer in use and the next one, or with the layers that are needed
    together to look at the model.
    """

    whole_bytes: int
    largest_layer_bytes: int
    resident_bytes: int
    streaming_bytes: int


def needed_memory(source: Source, dtype: str, *, trust_remote_code: bool = False) -> MemoryNeed:
    """What a model's weights need, from the headers of its weight files; nothing is loaded.

    Raises ModelError if the model cannot be read layer by layer, or if the files do not fit the config.
    """
    with quiet_transformers():
        skeleton = build_skeleton(source, dtype=dtype, trust_remote_code=trust_remote_code)
        weight_map = map_weights(skeleton, read_headers(source.folder))
        return memory_need(weight_map, plan_partial_model(skeleton))


def memory_need(weight_map: WeightMap, partial: PartialModel) -> MemoryNeed:
    """What a model's weights need, some of its layers in memory together at first."""
    sizes, reading = weight_map.layer_bytes, weight_map.reading_bytes
    resident = sum(step.result_bytes for step in weight_map.resident)
    resident_reading = resident + max((step.spare_bytes for step in weight_map.resident), default=0)
    pairs = [size + following for size, following in zip(sizes, reading[1:], strict=False)]
    spare = max(reading[index] - sizes[index] for index in partial.real)
    looking = sum(sizes[index] for index in partial.real) + spare
    return MemoryNeed(
        whole_bytes=resident + sum(sizes),
        largest_layer_bytes=max(sizes),
        resident_bytes=resident,
        streaming_bytes=max(resident_reading, resident + max(*pairs, looking, 0)),
    )


def would_not_fit(source: Source, dtype: str) -> bool:
    """Whether the weights of a model, with a tenth more for working with them, exceed the available memory.

    Only the headers of the weight files are read. Raises ModelError if they are damaged.
    """
    return weight_bytes(source, dtype) * WORKING_SHARE > available_memory()


def weight_bytes(source: Source, dtype: str) -> int:
    """Bytes of all of a model's weight files in the dtype they are loaded in, whatever the model's family.

    Only the headers of the weight files are read. Raises ModelError if they are damaged.
    """
    size: int = getattr(torch, dtype).itemsize
    return sum(tensor.elements * size for tensor in read_headers(source.folder).values())


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
        partial = plan_partial_model(skeleton)
        need = memory_need(weight_map, partial)
        _check_memory(need, memory_bytes, source.name)
        _load_resident(skeleton, weight_map)
        streamed = ShardedLayers(skeleton, weight_map, need.resident_bytes)
        stack, shape = discover(skeleton, streamed, partial)
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
