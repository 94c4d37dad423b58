"""Bytes of the hidden states of a trace layer by layer: how many are needed, and where they have room."""

from __future__ import annotations

import shutil
from collections.abc import Collection, Sequence
from pathlib import Path

from offramp.errors import InputError
from offramp.models.calls import first_tensor
from offramp.models.stack import ExitStack
from offramp.models.streaming.layers import StreamedLayers

DEFAULT_STATES_MEMORY = 1_000_000_000
"""Bytes of hidden states kept in memory if no budget is given and the trace has no folder."""


def kept_layers(exits: Sequence[int]) -> frozenset[int]:
    """Layers, from 0, whose outputs the facts of exits need: an exit's own and that of the layer before."""
    return frozenset(layer for exit in exits for layer in (exit - 1, exit - 2) if layer >= 0)


def output_bytes(stack: ExitStack, tokens: int) -> tuple[int, ...]:
    """Bytes of each layer's output at some positions, from the outputs that the stack was found by."""
    sizes = []
    for output in stack.layer_outputs:
        hidden = first_tensor(output)
        positions = hidden.shape[stack.position_axis]
        sizes.append(hidden.numel() // positions * hidden.element_size() * tokens)
    return tuple(sizes)


def peak_bytes(sizes: Sequence[int], kept: Collection[int]) -> int:
    """Bytes at most while layers are computed in order: what is kept, a layer's input and its output."""
    peak = held = 0
    for layer, size in enumerate(sizes):
        before = sizes[layer - 1] if layer and layer - 1 not in kept else 0
        peak = max(peak, held + before + size)
        held += size if layer in kept else 0
    return peak


def memory_for_states(memory: int | None, streamed: StreamedLayers) -> int:
    """Bytes that a budget leaves beside weights: those resident, a layer, and the one that is read ahead.

    memory: the budget in bytes, None for none.
    """
    if memory is None:
        return DEFAULT_STATES_MEMORY
    return memory - streamed.resident_bytes - 2 * max(streamed.layer_bytes)


def require_room(folder: Path, needed: int) -> None:
    """Refuse to start if the disk of a folder, which need not be there yet, has too little room.

    needed: bytes. Raises InputError that says how many are needed and how many are free.
    """
    disk = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(disk).free
    if needed > free:
        raise InputError(
            f"the disk is too full for the hidden states: {needed:,} bytes are needed for a while, "
            f"{free:,} bytes are free",
            where=str(folder),
            fix="free some space, choose a folder on another disk, or trace fewer --tokens or --exits",
        )
