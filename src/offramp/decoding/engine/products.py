"""Products of a few rows, of the head and of layers, with the weights on the left where that is faster."""

from __future__ import annotations

import functools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.models.stack import ExitStack
from offramp.models.tensors import is_wrapped

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
    assert stack.logit_scaling is not None, "a fast readout knows its transform"
    rows = normed.numel() // normed.shape[-1]
    if transposed and stack.head_weight is not None and rows <= MOST_ROWS:
        return stack.logit_scaling.apply(transposed_product(stack.head_weight, stack.head_bias, normed))
    assert stack.head is not None, "a fast readout has a head"
    return stack.logit_scaling.apply(stack.head(normed))


def transposed_is_faster(stack: ExitStack) -> bool:
    """Whether this machine computes one row's logits clearly faster with the weights on the left, tried.

    Only for a linear head in float32 on a processor, whose libraries multiply one row with one thread;
    anything else, and any accelerator, keeps the model's own product.
    """
    weight = stack.head_weight
    if stack.readout_kind != "fast" or weight is None or weight.numel() < SMALLEST:
        return False
    if not _is_plain(weight):
        return False
    row = torch.linspace(-1.0, 1.0, weight.shape[1], dtype=torch.float32, device=weight.device)[None]
    with torch.no_grad():
        usual = median_seconds(lambda: torch.nn.functional.linear(row, weight, stack.head_bias))
        transposed = median_seconds(lambda: transposed_product(weight, stack.head_bias, row))
    return transposed * CLEARLY < usual


def median_seconds(product: Callable[[], object]) -> float:
    """Of a few runs after the first."""
    samples = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        product()
        samples.append(time.perf_counter() - began)
    return statistics.median(samples[1:])


ROWS = range(2, 5)
"""Rows that take it: a token with those that waited for its layers, a block of drafts, a small batch."""

SMALLEST_OF_LAYER = 200_000
"""Weights from which on a layer's product is worth another order."""


def wide_linears(layers: Sequence[nn.Module]) -> tuple[nn.Linear, ...]:
    """The plain linear layers of float32 weights on a processor that are worth it, of layers not compiled."""
    return tuple(
        module
        for layer in layers
        if not any(map(_is_compiled, layer.modules()))
        for module in layer.modules()
        if type(module) is nn.Linear
        and module.weight.numel() >= SMALLEST_OF_LAYER
        and _is_plain(module.weight)
        and not _has_own(module)
    )


def _is_plain(weight: Tensor) -> bool:
    """Whether it is a matrix of float32 numbers on a processor. Quantised weights say they were float32, too,
    and have products of their own."""
    return weight.dtype == torch.float32 and weight.device.type == "cpu" and not is_wrapped(weight)


def _is_compiled(module: nn.Module) -> bool:
    """Whether a change of the module would make torch compile it again."""
    return getattr(module, "_compiled_call_impl", None) is not None or hasattr(module, "_orig_mod")


def few_rows_are_faster(layers: Sequence[nn.Module]) -> bool:
    """Whether this machine computes two rows of some layers' products clearly faster so, tried.

    Libraries multiply one row quickly and many rows quickly: two or three take twice as long as one, although
    the weights, which are nearly all that is read, are the same.
    """
    linears = wide_linears(layers)
    if not linears:
        return False
    with torch.no_grad():
        rows = {
            linear.in_features: torch.linspace(-1.0, 1.0, 2 * linear.in_features).view(2, -1)
            for linear in linears
        }
        usual = median_seconds(
            lambda: [F.linear(rows[linear.in_features], linear.weight, linear.bias) for linear in linears]
        )
        transposed = median_seconds(
            lambda: [
                transposed_product(linear.weight, linear.bias, rows[linear.in_features]) for linear in linears
            ]
        )
    return transposed * CLEARLY < usual


def _product(linear: nn.Linear, states: Tensor) -> Tensor:
    """What the layer gives: of more or fewer rows by its own product."""
    if states.numel() // states.shape[-1] not in ROWS:
        return F.linear(states, linear.weight, linear.bias)
    return transposed_product(linear.weight, linear.bias, states)


@contextmanager
def _replaced(linears: Sequence[nn.Linear]) -> Iterator[None]:
    placed = {linear: functools.partial(_product, linear) for linear in linears if not _has_own(linear)}
    for linear, product in placed.items():
        vars(linear)["forward"] = product
    try:
        yield
    finally:
        for linear, product in placed.items():
            # Another thread that drives the same model may have put its own there.
            if vars(linear).get("forward") is product:
                vars(linear).pop("forward", None)


def _has_own(linear: nn.Linear) -> bool:
    """Whether it computes something else: as its owner wants it, or for another thread."""
    return "forward" in vars(linear)


def few_rows(linears: Sequence[Sequence[nn.Linear]], rows: int) -> AbstractContextManager[None]:
    """Within it, products of so many rows are computed the faster way; hooks see every layer as ever.

    linears: of each of the layers that run, as `Engine.linears` has them. Sums are added up in another order,
    so that states differ by rounding.
    """
    if rows not in ROWS or torch.is_grad_enabled():
        return nullcontext()
    return _replaced([linear for layer in linears for linear in layer])
