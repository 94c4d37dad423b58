"""Devices that models compute on: by name, what there is of them, and the memory that is free there."""

from __future__ import annotations

import importlib.metadata
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from offramp.errors import InputError
from offramp.kit.numbers import whole_number
from offramp.kit.rules import OneOf
from offramp.models.process import available_memory
from offramp.models.shape import DTYPES

if TYPE_CHECKING:
    import torch
    from torch import Tensor

AUTO = "auto"
"""The accelerator of this machine, or its processor; of a dtype, what fits the device."""

CPU = "cpu"
ACCELERATORS = ("cuda", "xpu", "mps")
"""Kinds of accelerators, the first that is there is taken by "auto"."""


def find_device(name: str, where: str = "--device") -> str:
    """The device that is meant, with its number where there are several: "cpu", "cuda:0", "mps".

    name: "auto", "cpu", "cuda", "cuda:1", "xpu" or "mps". where: it was given.

    Raises InputError for one that is not known, or not here.
    """
    if name == CPU:
        return CPU
    kind, colon, number = name.partition(":")
    stated = whole_number(number, 0) if colon else 0
    if kind not in (AUTO, *ACCELERATORS) or stated is None or (kind == AUTO and colon):
        raise InputError(f"unknown device {name!r}", where=where, fix=_choose())
    if kind == AUTO:
        return next(
            (f"{kind}:0" if kind != "mps" else kind for kind in ACCELERATORS if device_count(kind)), CPU
        )
    if stated >= device_count(kind):
        raise InputError(f"there is no device {name} here", where=where, fix=_choose())
    return kind if kind == "mps" else f"{kind}:{stated}"


DtypeName = Annotated[str, OneOf("dtype", lambda: (AUTO, *DTYPES))]
"""What models are loaded in; "auto" is one."""


def device_count(kind: str) -> int:
    """How many devices of a kind torch can use here; a build for processors alone is not even imported."""
    try:
        if importlib.metadata.version("torch").endswith("+cpu"):
            return 0
    except importlib.metadata.PackageNotFoundError:  # `offramp doctor` says that it is missing
        return 0
    import torch

    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = getattr(torch, kind)
    return int(module.device_count()) if module.is_available() else 0


def _choose() -> str:
    here = [f"{kind}:{place}" for kind in ACCELERATORS for place in range(device_count(kind))]
    return f"choose one of: {', '.join((AUTO, CPU, *here))}"


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device, or that this process can still use on the machine itself, in bytes."""
    if device.type in ("cuda", "xpu"):
        import torch

        module = getattr(torch, device.type)
        # What torch holds and does not use is free for the next tensor.
        held = module.memory_reserved(device) - module.memory_allocated(device)
        return int(module.mem_get_info(device)[0]) + int(held)
    if device.type == "mps":
        import torch

        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    return available_memory()


def device_memory(device: str) -> int:
    """All memory of an accelerator, as `find_device` names it, in bytes; of "mps", which shares it, what is
    free.
    """
    import torch

    kind = device.partition(":")[0]
    if kind in ("cuda", "xpu"):
        return int(getattr(torch, kind).mem_get_info(torch.device(device))[1])
    return free_bytes(torch.device(device))


def synchronise(device: torch.device) -> None:
    """Wait until a device has done everything that it was given; the processor always has."""
    if device.type != CPU:
        import torch

        module = getattr(torch, device.type)
        module.synchronize(*([] if device.type == "mps" else [device]))


def device_name(device: torch.device | str) -> str:
    """What a device is, for people: "NVIDIA H100 80GB HBM3", or its kind where torch knows no more."""
    kind = str(device).partition(":")[0]
    if kind not in ("cuda", "xpu"):
        return kind
    import torch

    return str(getattr(torch, kind).get_device_name(device))


def float64_device(device: torch.device) -> torch.device:
    """Where float64 is computed for a device: there, or on the processor if it has none, as mps."""
    import torch

    return torch.device(CPU) if device.type == "mps" else device


def to_host(tensors: Sequence[Tensor]) -> list[Tensor]:
    """The tensors in the processor's memory: all copies are under way at once, and waited for together.

    Tensors that are there already are given back as they are.
    """
    import torch

    copies = []
    for tensor in tensors:
        if tensor.device.type == "cuda":  # only into pinned memory does a copy not wait
            pinned = torch.empty(tensor.shape, dtype=tensor.dtype, device=CPU, pin_memory=True)
            copies.append(pinned.copy_(tensor, non_blocking=True))
        else:
            copies.append(tensor.to(CPU))
    for device in {tensor.device for tensor in tensors}:
        synchronise(device)
    return copies
