"""Bytes of weights as they are stored, where a tensor may be made of several (quantised weights)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a tensor's elements are stored in other tensors, as those of quantised weights are."""
    return hasattr(tensor, "__tensor_flatten__")


def stored_tensors(tensor: Tensor) -> Iterator[Tensor]:
    """The plain tensors that hold a tensor's elements: itself, or its integers, scales and zero points."""
    if not is_wrapped(tensor):
        yield tensor
        return
    whole: Any = tensor
    names, _ = whole.__tensor_flatten__()
    for name in names:
        yield from stored_tensors(getattr(whole, name))


def is_finite(tensor: Tensor) -> bool:
    """Whether a tensor holds neither NaN nor infinity, in any of what it is stored in."""
    for part in stored_tensors(tensor):
        # One sum finds every NaN and infinity without a copy; an overflowing sum is looked at closely.
        if part.is_floating_point() and not torch.isfinite(part.sum()) and not torch.isfinite(part).all():
            return False
    return True


def stored_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes that the distinct parameters of some modules take."""
    parameters = {id(parameter): parameter for module in modules for parameter in module.parameters()}
    return sum(
        part.numel() * part.element_size()
        for parameter in parameters.values()
        for part in stored_tensors(parameter)
    )


def mean_element_bytes(module: nn.Module) -> float | None:
    """Mean bytes of one weight of a module that holds quantised ones, scales included; None without any."""
    parameters = {id(parameter): parameter for parameter in module.parameters()}.values()
    if not any(is_wrapped(parameter) for parameter in parameters):
        return None
    return stored_bytes([module]) / sum(parameter.numel() for parameter in parameters)
