"""The linear modules of a layer, and quantising them in place."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torchao.quantization import quantize_

from offramp.models.stored import is_wrapped
from offramp.models.transforms.int8_linear import Int8Linear, few_rows_pay


def linear_modules(layer: nn.Module) -> Iterator[tuple[nn.Module, str, nn.Linear]]:
    """Parent, name and module of each linear module whose weights torchao quantises, as it chooses them."""
    for parent in layer.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.Linear) and not isinstance(child, NonDynamicallyQuantizableLinear):
                yield parent, name, child


def called_linears(layers: Iterable[nn.Module], run: Callable[[], object]) -> list[nn.Linear]:
    """The linear modules of some layers without those that their parents do not call in a run.

    The weights of such a module are read directly (Mamba's step size), which quantised ones do not allow. An
    expert that no token of the run meets has a parent that is not called either, and stays.
    """
    layers = list(layers)
    called: set[nn.Module] = set()
    handles = [
        module.register_forward_pre_hook(lambda module, arguments: called.add(module))
        for module in {module for layer in layers for module in layer.modules()}
    ]
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    found = [entry for layer in layers for entry in linear_modules(layer)]
    return list(
        dict.fromkeys(linear for parent, _, linear in found if linear in called or parent not in called)
    )


def quantise_linears(
    layer: nn.Module, config: Any, chosen: Collection[nn.Module]
) -> list[tuple[nn.Module, str, nn.Linear]]:
    """Quantise a layer's linear modules that are among the chosen ones, in place.

    config: of torchao. Where torch's kernel is faster for few rows, a module becomes an `Int8Linear`. Returns
    parent, name and quantised module of each, as they were found.
    """
    quantize_(
        layer, config, filter_fn=lambda module, name: module in chosen and not is_wrapped(module.weight)
    )
    found = [entry for entry in linear_modules(layer) if entry[2] in chosen]
    for parent, name, linear in found:
        if _takes_kernel(linear):
            setattr(parent, name, Int8Linear.of(linear))
    return found


def _takes_kernel(linear: nn.Linear) -> bool:
    # A subclass computes something else beside the product.
    weight: Any = linear.weight
    if type(linear) is not nn.Linear or type(weight.data).__name__ != "Int8Tensor":
        return False
    return few_rows_pay(str(weight.dtype).removeprefix("torch."), weight.device.type)
