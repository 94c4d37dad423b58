"""Fitted heads ready to be used once per token: their weights as tensors on the model's device."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from offramp.tracing.exit_heads import ExitClassifier, LinearLens


@dataclass(frozen=True)
class PreparedLens:
    """One exit's affine map. weight: float32 [features, features], transposed; bias: float32 [features]."""

    weight: Tensor
    bias: Tensor

    @classmethod
    def of(cls, lens: LinearLens, place: int, device: torch.device) -> PreparedLens:
        """The map at one place of the lens's arrays."""
        return cls(_tensor(lens.weight[place], device).t(), _tensor(lens.bias[place], device))

    def __call__(self, rows: Tensor) -> Tensor:
        """A h + b of rows [rows, features], computed in float32 and given in their own dtype."""
        return torch.addmm(self.bias, rows.float(), self.weight).to(rows.dtype)


@dataclass(frozen=True)
class PreparedClassifier:
    """One exit's classifier. layers: weight [features, outputs] and bias [outputs] of each, float32."""

    mean: Tensor
    scale: Tensor
    layers: tuple[tuple[Tensor, Tensor], ...]

    @classmethod
    def of(cls, classifier: ExitClassifier, place: int, device: torch.device) -> PreparedClassifier:
        """The classifier at one place of its arrays."""
        layers = [
            (_tensor(weight[place], device), _tensor(bias[place], device))
            for weight, bias in zip(classifier.weights, classifier.biases, strict=True)
        ]
        mean, scale = (_tensor(array[place], device) for array in (classifier.mean, classifier.scale))
        return cls(mean, scale, tuple(layers))

    def __call__(self, features: Tensor) -> Tensor:
        """Probability, float32 [rows], of features [rows, features]."""
        # Not folded into the first layer: with large means that would lose digits, and so change decisions.
        values = (features.float() - self.mean) / self.scale
        for place, (weight, bias) in enumerate(self.layers):
            values = torch.addmm(bias, values.relu() if place else values, weight)
        return values.squeeze(-1).sigmoid()


def _tensor(array: NDArray[np.float32], device: torch.device) -> Tensor:
    # A copy, since heads may lie in read-only memory.
    return torch.from_numpy(np.array(array, dtype=np.float32)).to(device)
