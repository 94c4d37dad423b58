"""How much memory a model's weights take, loaded whole or layer by layer, and how much there is."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from offramp.models.available_memory import WORKING_SHARE, available_memory
from offramp.models.gguf_file import quiet_transformers
from offramp.models.source import Source
from offramp.models.streaming.skeleton import build_skeleton
from offramp.models.streaming.twin import Twin, plan_twin
from offramp.models.streaming.weight_map import WeightMap, map_weights
from offramp.models.weight_files import read_headers


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
        return memory_need(weight_map, plan_twin(skeleton))


def memory_need(weight_map: WeightMap, twin: Twin) -> MemoryNeed:
    """What a model's weights need, some of its layers in memory together at first."""
    sizes, reading = weight_map.layer_bytes, weight_map.reading_bytes
    resident = sum(step.result_bytes for step in weight_map.resident)
    resident_reading = resident + max((step.spare_bytes for step in weight_map.resident), default=0)
    pairs = [size + following for size, following in zip(sizes, reading[1:], strict=False)]
    spare = max(reading[index] - sizes[index] for index in twin.real)
    looking = sum(sizes[index] for index in twin.real) + spare
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
