"""What is asked of tensors: how far they lie apart, whether they are finite, the bytes they are stored in.

A model may rule tokens out with logits of -inf, and a quantised weight is stored in several tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from offramp.errors import ModelError
from offramp.models.checkpoint import AGAIN, StoredTensor

UNFIT_KINDS = {"I": "whole numbers", "U": "whole numbers", "BO": "truth values", "C": "complex numbers"}
"""What cannot be weights, by how its type begins in a safetensors header."""


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape, NaN if one holds a NaN.

    Equal infinities do not differ; unequal ones differ by infinity.
    """
    found, expected = found.float(), expected.float()
    return float((found - expected).abs().masked_fill(found == expected, 0.0).max())


def largest_finite(logits: Tensor) -> float:
    """Largest absolute value apart from infinities: what a difference is held against."""
    return float(logits.float().abs().masked_fill(logits.isinf(), 0.0).max())


def is_wrapped(tensor: Tensor) -> bool:
    """Whether a tensor's elements are stored in other tensors, as those of quantised weights are."""
    return hasattr(tensor, "__tensor_flatten__")


def precision_of(hf: Any) -> torch.dtype:
    """What products are rounded to: the dtype of the weights, or bfloat16 where some are in few bits."""
    parameters = list(hf.parameters())
    return torch.bfloat16 if any(map(is_wrapped, parameters)) else parameters[0].dtype


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


def check_finite(hf: Any, name: str) -> None:
    """Raise ModelError for a model with a NaN or infinite weight, naming the tensor; `name`: of the model."""
    for parameter_name, parameter in hf.named_parameters():
        if not parameter.is_meta:
            check_tensor_finite(parameter_name, parameter, name)


def check_tensor_finite(tensor_name: str, tensor: Tensor, name: str) -> None:
    """Raise ModelError for a weight with a NaN or infinity."""
    if not is_finite(tensor):
        raise ModelError(
            f"the weight {tensor_name} holds NaN or infinite values",
            where=name,
            fix="the file is damaged or the training failed: use another copy of the model",
        )


def check_kind(stored: StoredTensor, dtype: torch.dtype) -> None:
    """Refuse a stored tensor that cannot be a weight of a dtype, to which it would be converted without a
    word. Raises ModelError.
    """
    kind = next((kind for start, kind in UNFIT_KINDS.items() if stored.dtype.startswith(start)), None)
    if kind is not None and dtype.is_floating_point:
        what = f"{stored.name} is {stored.dtype}, {kind}, and the model's is {dtype}"
        raise ModelError(what, where=str(stored.file), fix=AGAIN)
