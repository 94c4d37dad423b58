"""Refusing weights that are not finite: a damaged file or a failed training."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from offramp.errors import ModelError
from offramp.models.stored import is_finite


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
