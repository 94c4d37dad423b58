"""How much memory a model's weights take, loaded whole or layer by layer, and how much there is."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from offramp.models.gguf_file import quiet_transformers
from offramp.models.source import Source
from offramp.models.streaming.skeleton import build_skeleton
from offramp.models.streaming.twin import Twin, plan_twin
from offramp.models.streaming.weight_map import WeightMap, map_weights
from offramp.models.weight_files import read_headers

# Beside the weights, a loaded model needs room for activations, logits and Python itself.
WORKING_SHARE = 1.1

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")


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


def available_memory(groups: Path = CGROUPS, own: Path = OWN_CGROUP) -> int:
    """Bytes that this process can still use: what the machine has free, or what its control groups leave it.

    groups, own: where Linux lists the limits of control groups (containers), and the groups of this process.
    """
    rooms = [int(psutil.virtual_memory().available)]
    paths = own.read_text().splitlines() if own.is_file() else []
    for line in paths:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            rooms += _rooms(groups, path, limit="memory.max", used="memory.current", idle="inactive_file")
        elif "memory" in controllers.split(","):
            rooms += _rooms(
                groups / "memory",
                path,
                limit="memory.limit_in_bytes",
                used="memory.usage_in_bytes",
                idle="total_inactive_file",
            )
    return max(min(rooms), 0)


def _rooms(root: Path, path: str, *, limit: str, used: str, idle: str) -> list[int]:
    """What each control group from `path` up to the root leaves; idle pages of files count as free."""
    rooms = []
    inner = root / path.strip("/")
    for group in (inner, *inner.parents):
        if not group.is_relative_to(root):
            break
        stated = (group / limit).read_text().strip() if (group / limit).is_file() else "max"
        if stated != "max":
            lines = (group / "memory.stat").read_text().splitlines()
            statistics = dict(line.split() for line in lines)
            rooms.append(int(stated) - int((group / used).read_text()) + int(statistics.get(idle, 0)))
    return rooms
