"""What tests of quantised models share: which transforms this machine can do, and torchao's own way."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from offramp.errors import InputError
from offramp.models.model import Model
from offramp.models.transforms.quantise import Int4, Int8, Quantised

IDS = torch.tensor([[5, 9, 33, 7, 21, 40, 12, 3, 60, 17, 8, 29]])


def kernel(transform: Quantised, dtype: str) -> bool:
    """Whether this machine can do it."""
    try:
        transform.check(dtype)
    except InputError:
        return False
    return True


needs_int4 = pytest.mark.skipif(not kernel(Int4(), "bfloat16"), reason="no int4 kernel for this processor")
EVERY = [
    pytest.param(Int8(), "float32", id="int8-float32"),
    pytest.param(Int8(), "bfloat16", id="int8-bfloat16"),
    pytest.param(Int4(group=64), "bfloat16", id="int4", marks=needs_int4),
]


def config_by_hand(transform: Quantised) -> Any:
    """torchao's own configuration, made as its users make it."""
    if isinstance(transform, Int4):
        from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

        return PrototypeInt4WeightOnlyConfig(group_size=transform.group, set_inductor_config=False)
    from torchao.quantization import Int8WeightOnlyConfig

    return Int8WeightOnlyConfig(set_inductor_config=False)


def logits_of(model: Model, ids: torch.Tensor = IDS) -> torch.Tensor:
    with torch.no_grad():
        logits: torch.Tensor = model.hf(input_ids=ids).logits
    return logits
