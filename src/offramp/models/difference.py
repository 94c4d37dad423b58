"""How far logits lie apart, where a model may rule tokens out with logits of -inf."""

from __future__ import annotations

from torch import Tensor


def largest_difference(found: Tensor, expected: Tensor) -> float:
    """Largest absolute difference of two tensors of one shape, NaN if one holds a NaN.

    Equal infinities do not differ; unequal ones differ by infinity.
    """
    found, expected = found.float(), expected.float()
    return float((found - expected).abs().masked_fill(found == expected, 0.0).max())


def largest_finite(logits: Tensor) -> float:
    """Largest absolute value apart from infinities: what a difference is held against."""
    return float(logits.float().abs().masked_fill(logits.isinf(), 0.0).max())
