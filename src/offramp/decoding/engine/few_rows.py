"""Products of two to four rows: linear layers run with their weights on the left, where that is faster."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from offramp.decoding.engine.engine import CLEARLY, median_seconds, transposed_product

ROWS = range(2, 5)
"""Rows that take it: a token with those that waited for its layers, a block of drafts, a small batch."""

SMALLEST = 200_000
"""Weights from which on a product is worth another order."""


def wide_linears(layers: Sequence[nn.Module]) -> tuple[nn.Linear, ...]:
    """The plain linear layers of float32 weights on a processor that are worth it, of layers not compiled."""
    return tuple(
        module
        for layer in layers
        if not any(map(_is_compiled, layer.modules()))
        for module in layer.modules()
        if type(module) is nn.Linear
        and module.weight.numel() >= SMALLEST
        and module.weight.dtype == torch.float32
        and module.weight.device.type == "cpu"
        and not _has_own(module)
    )


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
        own = median_seconds(
            lambda: [F.linear(rows[one.in_features], one.weight, one.bias) for one in linears]
        )
        other = median_seconds(
            lambda: [transposed_product(one.weight, one.bias, rows[one.in_features]) for one in linears]
        )
    return other * CLEARLY < own


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
    return _replaced([one for layer in linears for one in layer])
