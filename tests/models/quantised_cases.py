"""What tests of quantised models share: which transforms this machine can do, and weights rounded by hand."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn

from offramp.errors import InputError
from offramp.models.model import Model
from offramp.models.transforms.quantise import Int4, Int8, Quantised

IDS = torch.tensor([[5, 9, 33, 7, 21, 40, 12, 3, 60, 17, 8, 29]])


def kernel(transform: Quantised) -> bool:
    """Whether this machine can do it."""
    try:
        transform.check()
    except InputError:
        return False
    return True


needs_int8 = pytest.mark.skipif(not kernel(Int8()), reason="no int8 kernel for this processor")
needs_int4 = pytest.mark.skipif(not kernel(Int4()), reason="no int4 kernel for this processor")
EVERY = [
    pytest.param(transform, dtype, id=f"{name}-{dtype}", marks=needs)
    for name, transform, needs in (("int8", Int8(), needs_int8), ("int4", Int4(group=64), needs_int4))
    for dtype in ("float32", "bfloat16")
]


def rounded(weights: Tensor, transform: Quantised) -> Tensor:
    """What weights [outputs, inputs] stand for in few bits, number by number: float64."""
    exact, found = weights.double(), torch.empty(weights.shape, dtype=torch.float64)
    for row, values in enumerate(exact):
        for part in values.split(transform.shared or len(values)):
            if transform.bits == 8:
                zero, middle, low, high = 0.0, 0, -127, 127
                step = float((part.abs().max() / 127).bfloat16())
            else:
                middle, low, high = 8, 0, 15
                step = float(((part.max() - part.min()) / 15).bfloat16())
                zero = float((part.min() + 8 * step).bfloat16())
            for value in part:
                number = min(high, max(low, round((float(value) - zero) / step + middle)))
                place = int((value.data_ptr() - exact[row].data_ptr()) // value.element_size())
                found[row, place] = (number - middle) * step + zero
    return found


def rounded_by_hand(modules: Iterable[nn.Module], transform: Quantised) -> None:
    """The linear modules below some, each with the weights that it would have, unpacked."""
    for module in modules:
        for linear in module.modules():
            if isinstance(linear, nn.Linear):
                linear.weight.data = rounded(linear.weight.data, transform).to(linear.weight.dtype)


def logits_of(model: Model, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.hf(input_ids=ids).logits
    return logits
