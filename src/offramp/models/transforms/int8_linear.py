"""Linear layers with int8 weights whose products of few rows take torch's own kernel."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.models.transforms.layouts import INPUTS, OUTPUTS, UNFIT_ERRORS, seconds_of

MOST_ROWS = 8
"""Rows up to which the kernel is clearly faster: its time grows with each."""

CLEARLY = 1.25
"""How much faster one row must be."""

CLOSE = 2.0**-6
"""Of the largest value: how far both ways of rounding to bfloat16 may lie apart."""


class Int8Linear(nn.Linear):
    """A linear layer with torchao's int8 weights.

    torchao converts all weights to the dtype of the states for every product, which pays for many rows. For
    up to MOST_ROWS rows this multiplies with the integers themselves, by the kernel that torch.compile would
    put there (aten::_weight_int8pack_mm): the same integers and scales, added up in float32.

    scales: [outputs], in the dtype of the states.
    """

    scales: Tensor

    @classmethod
    def of(cls, linear: nn.Linear) -> Int8Linear:
        """A layer with the weights of one that torchao has quantised."""
        made = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        made.weight, made.bias = linear.weight, linear.bias
        weight: Any = linear.weight
        made.register_buffer("scales", weight.scale.flatten().to(weight.dtype), persistent=False)
        return made.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        rows = input.reshape(-1, self.in_features)
        if len(rows) > MOST_ROWS:
            return F.linear(input, self.weight, self.bias)
        weight: Any = self.weight
        product = torch._weight_int8pack_mm(rows.contiguous(), weight.qdata, self.scales)
        product = product if self.bias is None else product + self.bias
        return product.view(*input.shape[:-1], self.out_features)


@cache
def few_rows_pay(dtype: str, device: str) -> bool:
    """Whether torch's kernel multiplies one row clearly faster here than torchao does; tried once.

    It has vector instructions for bfloat16 only; in float32 products stay torchao's, bit for bit.
    """
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(1, INPUTS, generator=generator).to(device, kind)
    own = nn.Linear(INPUTS, OUTPUTS, bias=False, device=device, dtype=kind)
    with torch.no_grad():
        own.weight.copy_(torch.randn(OUTPUTS, INPUTS, generator=generator))
        quantize_(own, Int8WeightOnlyConfig(set_inductor_config=False))
        other = Int8Linear.of(own)
        try:
            found, expected = other(row).float(), own(row).float()
        except UNFIT_ERRORS:
            return False
        if not (found - expected).abs().max() <= CLOSE * expected.abs().max():
            return False
        return seconds_of(lambda: other(row)) * CLEARLY < seconds_of(lambda: own(row))
