"""The output head's product for the few rows of a decoding step, by whichever way is faster here."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from offramp.models.stack import ExitStack

MOST_ROWS = 8
"""Rows up to which the transposed product was faster; a prompt has more."""

SMALLEST = 4_000_000
"""Weights from which on a product is worth a choice: smaller ones stay in the processor's caches."""

CLEARLY = 1.25
"""How much faster the transposed product must be: the model's own rounding is not given up for noise."""

_ROUNDS = 5


def transposed_product(weight: Tensor, bias: Tensor | None, states: Tensor) -> Tensor:
    """states W^T (+ bias) computed as (W states^T)^T: [..., features] -> [..., columns].

    Libraries multiply one row by a float32 matrix with one thread, and two or three rows worse than four;
    the same product with the weights on the left keeps all threads busy. A single row is doubled for that.
    Sums are added up in another order, so that logits differ by rounding.
    """
    rows = states.reshape(-1, states.shape[-1])
    doubled = torch.cat([rows, rows]) if len(rows) == 1 else rows
    product = torch.mm(weight, doubled.t())[:, : len(rows)].t().contiguous()
    return (product if bias is None else product + bias).view(*states.shape[:-1], -1)


def head_logits(stack: ExitStack, normed: Tensor, transposed: bool) -> Tensor:
    """Logits of states behind the tail of a linear head: [..., features] -> [..., vocabulary].

    transposed: whether few rows take `transposed_product` (see `transposed_is_faster`).
    """
    assert stack.transform is not None, "a fast readout knows its transform"
    rows = normed.numel() // normed.shape[-1]
    if transposed and stack.head_weight is not None and rows <= MOST_ROWS:
        return stack.transform.apply(transposed_product(stack.head_weight, stack.head_bias, normed))
    assert stack.head is not None, "a fast readout has a head"
    return stack.transform.apply(stack.head(normed))


def transposed_is_faster(stack: ExitStack) -> bool:
    """Whether this machine computes one row's logits clearly faster with the weights on the left, tried.

    Only for a linear head in float32 on a processor; anything else keeps the model's own product.
    """
    weight = stack.head_weight
    if stack.readout_kind != "fast" or weight is None or weight.numel() < SMALLEST:
        return False
    if weight.dtype != torch.float32 or weight.device.type != "cpu":
        return False
    row = torch.linspace(-1.0, 1.0, weight.shape[1])[None]
    with torch.no_grad():
        own = _seconds(lambda: torch.nn.functional.linear(row, weight, stack.head_bias))
        other = _seconds(lambda: transposed_product(weight, stack.head_bias, row))
    return other * CLEARLY < own


def _seconds(product: Callable[[], Tensor]) -> float:
    samples = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        product()
        samples.append(time.perf_counter() - began)
    return statistics.median(samples[1:])
