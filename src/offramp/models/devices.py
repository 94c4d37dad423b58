"""Devices that models compute on: by name, what there is of them, and the memory that is free there."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from offramp.errors import InputError, ModelError
from offramp.models.shape import DTYPES

if TYPE_CHECKING:
    import torch

AUTO = "auto"
"""The accelerator of this machine, or its processor; of a dtype, what fits the device."""

CPU = "cpu"
ACCELERATORS = ("cuda", "xpu", "mps")
"""Kinds of accelerators, the first that is there is taken by "auto"."""


def find_device(name: str) -> str:
    """The device that is meant, with its number where there are several: "cpu", "cuda:0", "mps".

    name: "auto", "cpu", "cuda", "cuda:1", "xpu" or "mps".

    Raises InputError for one that is not known, or not here.
    """
    if name == CPU:
        return CPU
    kind, colon, number = name.partition(":")
    if kind not in (AUTO, *ACCELERATORS) or (colon and not number.isdecimal()) or (kind == AUTO and colon):
        raise InputError(
            f"unknown device {name!r}", where="--device", fix=f"choose one of: {', '.join(_choices())}"
        )
    if kind == AUTO:
        return next((f"{one}:0" if one != "mps" else one for one in ACCELERATORS if device_count(one)), CPU)
    if int(number or 0) >= device_count(kind):
        raise InputError(
            f"there is no device {name} here", where="--device", fix=f"choose one of: {', '.join(_choices())}"
        )
    return kind if kind == "mps" else f"{kind}:{number or 0}"


def require_dtype(dtype: str) -> None:
    """Refuse a dtype that models are not loaded in; "auto" is one. Raises ModelError."""
    if dtype not in (AUTO, *DTYPES):
        known = ", ".join((AUTO, *DTYPES))
        raise ModelError(f"unknown dtype {dtype!r}", where="dtype", fix=f"choose one of: {known}")


def device_count(kind: str) -> int:
    """How many devices of a kind torch can use here."""
    import torch

    if kind == "mps":
        return int(torch.backends.mps.is_available())
    module = getattr(torch, kind)
    return int(module.device_count()) if module.is_available() else 0


def _choices() -> list[str]:
    here = [f"{kind}:{place}" for kind in ACCELERATORS for place in range(device_count(kind))]
    return [AUTO, CPU, *here]


def free_bytes(device: torch.device) -> int:
    """Memory that is free on a device, or on the machine itself, in bytes."""
    if device.type in ("cuda", "xpu"):
        import torch

        return int(getattr(torch, device.type).mem_get_info(device)[0])
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def synchronise(device: torch.device) -> None:
    """Wait until a device has done everything that it was given; the processor always has."""
    if device.type != CPU:
        import torch

        getattr(torch, device.type).synchronize()
