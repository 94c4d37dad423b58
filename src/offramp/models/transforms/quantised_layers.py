"""Layers whose linear modules are quantised: in place, or each time that one is read from disk."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear
from torchao.quantization import quantize_

from offramp.errors import ModelError
from offramp.models.calls import Recorder
from offramp.models.discovery import UNFIT_ERRORS, probe_ids
from offramp.models.model import Model
from offramp.models.streamed_layers import StreamedLayers
from offramp.models.tensors import is_wrapped, mean_element_bytes
from offramp.models.transforms.kernels import Int8Linear, few_rows_pay


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


class QuantisedLayers:
    """`StreamedLayers` whose linear modules are quantised each time that a layer has been read.

    streamed: the layers as they are stored; sizes and times are theirs. config, chosen: as of
    `quantise_linears`.
    """

    def __init__(self, streamed: StreamedLayers, config: Any, chosen: Collection[nn.Module]) -> None:
        self._streamed = streamed
        self._config = config
        self._chosen = chosen
        self.layer_bytes = streamed.layer_bytes
        self.resident_bytes = streamed.resident_bytes

    @property
    def waited_seconds(self) -> float:
        """See `StreamedLayers`."""
        return self._streamed.waited_seconds

    @property
    def read_seconds(self) -> float:
        """See `StreamedLayers`."""
        return self._streamed.read_seconds

    @contextmanager
    def layer(self, index: int, following: int | None = None) -> Iterator[nn.Module]:
        """See `StreamedLayers.layer`."""
        with self._streamed.layer(index, following=following) as module:
            found = quantise_linears(module, self._config, self._chosen)
            try:
                yield module
            finally:
                for parent, name, linear in found:
                    setattr(parent, name, _emptied(linear))


def _emptied(linear: nn.Linear) -> nn.Linear:
    """A quantised module as it was before its weights were read."""
    weight = torch.empty(linear.weight.shape, dtype=linear.weight.dtype, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    vars(linear).pop("extra_repr", None)  # which torchao wraps once more each time
    return linear


@contextmanager
def _probed(
    model: Model, layers: StreamedLayers, index: int
) -> Iterator[tuple[nn.Module, Callable[[], object]]]:
    """A layer of a streamed model with its weights, and a function that runs it on a short probe."""
    with torch.no_grad():
        hidden, calls = Recorder(model.stack)(input_ids=probe_ids(model.hf), use_cache=False)
        arguments, keywords = calls[index].arguments(hidden)
        with layers.layer(index) as module:
            yield module, lambda: module(*arguments, **keywords)


def streamed_linears(model: Model, layers: StreamedLayers, alike: Sequence[int]) -> list[nn.Linear]:
    """`called_linears` of a streamed model. alike: for each layer the first one that looks like it."""
    names: dict[int, list[str]] = {}
    for index in dict.fromkeys(alike):
        with _probed(model, layers, index) as (module, run):
            called = called_linears([module], run)
            names[index] = [name for name, child in module.named_modules() if child in called]
    return [
        cast(nn.Linear, layer.get_submodule(name))
        for layer, first in zip(model.stack.layers, alike, strict=True)
        for name in names[first]
    ]


def try_layer(model: Model, layers: StreamedLayers, index: int) -> float | None:
    """Run one layer of a streamed model; mean bytes of one of its weights. Raises ModelError if it fails."""
    with _probed(model, layers, index) as (module, run):
        try:
            run()
        except UNFIT_ERRORS as error:
            raise ModelError(
                f"layer {index + 1} fails: {type(error).__name__}: {error}", where=model.name
            ) from error
        return mean_element_bytes(module)
