"""What torch's products may round to, while statistics are taken and put back afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

REDUCED_SUMS = (
    "allow_bf16_reduced_precision_reduction",
    "allow_fp16_reduced_precision_reduction",
    "allow_fp16_accumulation",
)
"""Settings of torch on CUDA by which products of 16 bits add up in fewer than float32 has."""


@contextmanager
def products_in(precision: Literal["highest", "medium"]) -> Iterator[None]:
    """Let float32 products use factors of float32 ("highest"), or of bfloat16, which needs such factors."""
    try:
        before = torch.get_float32_matmul_precision()
    except RuntimeError:  # torch does not tell the one setting where a process has used those by backend
        with _backends_in(precision):
            yield
        return
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


@contextmanager
def _backends_in(precision: Literal["highest", "medium"]) -> Iterator[None]:
    """The same by the settings of each backend, as torch has them from 2.9 on."""
    backends: Any = torch.backends
    places = (backends.mkldnn.matmul, backends.cuda.matmul)
    wanted = ("bf16", "tf32") if precision == "medium" else ("ieee", "ieee")
    kept = [place.fp32_precision for place in places]
    for place, value in zip(places, wanted, strict=True):
        place.fp32_precision = value
    try:
        yield
    finally:
        for place, value in zip(places, kept, strict=True):
            place.fp32_precision = value


@contextmanager
def exact_sums() -> Iterator[None]:
    """Products of float32 factors, and 16-bit ones that add up in float32, as statistics take for granted.

    A process may have allowed less for the speed of its model's own products, and torch's default on CUDA is
    less for those of 16 bits.
    """
    settings = torch.backends.cuda.matmul
    before = {name: getattr(settings, name) for name in REDUCED_SUMS}
    for name in REDUCED_SUMS:
        setattr(settings, name, False)
    try:
        with products_in("highest"):
            yield
    finally:
        for name, value in before.items():
            setattr(settings, name, value)
