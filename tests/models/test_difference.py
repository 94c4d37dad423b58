"""Logits apart, with tokens that a model rules out."""

from __future__ import annotations

import math

import torch

from offramp.models.tensors import largest_difference, largest_finite


def test_equal_infinities_do_not_differ_and_unequal_ones_do() -> None:
    out = -torch.inf
    left = torch.tensor([1.0, out, 3.0])
    assert largest_difference(left, torch.tensor([1.5, out, 3.0])) == 0.5
    assert largest_difference(left, torch.tensor([1.0, 2.0, 3.0])) == math.inf
    assert math.isnan(largest_difference(left, torch.tensor([torch.nan, out, 3.0])))
    assert largest_finite(torch.tensor([1.0, out, -3.0])) == 3.0
    assert math.isnan(largest_finite(torch.tensor([1.0, torch.nan])))
