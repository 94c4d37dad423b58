"""Layers of quantised weights: kernels of torchao and torch, each tried once, and modules that use them."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from offramp.errors import InputError, ModelError
from offramp.models.calls import UNFIT_ERRORS, Recorder
from offramp.models.discovery import probe_ids
from offramp.models.model import Model
from offramp.models.process import silence_torchao
from offramp.models.streaming import StreamedLayers
from offramp.models.tensors import is_wrapped, mean_element_bytes
from offramp.models.transforms.quantise import PACKAGE

INSTALL = "pip install 'offramp[quantisation]'"

ROWS, INPUTS, OUTPUTS = 16, 512, 1024
"""Sizes of the product that is tried."""

FARTHEST = 0.25
"""Root mean square of a product's error over that of the product: about 0.1 for 4 bits in groups."""

SLOWEST = 12.0
"""How many times as long as the unquantised product: 2 to 4 with vector instructions, 50 in a plain loop."""

_ROUNDS = 30
_SECONDS = 0.1

# What torchao and its kernels raise where they cannot do a thing.
KERNEL_ERRORS = (
    ImportError,
    AssertionError,
    NotImplementedError,
    RuntimeError,
    ValueError,
    TypeError,
    AttributeError,
)


@dataclass(frozen=True)
class Layout:
    """One way of torchao's to hold weights."""

    name: str
    devices: tuple[str, ...]
    """Types of those that it is made for."""
    config: Callable[[int | None], Any]
    """Its configuration for so many weights in a group."""


def _int8(group: int | None) -> Any:
    from torchao.quantization import Int8WeightOnlyConfig

    # Inductor's settings are global, and among them is a lower precision of all float32 products.
    return Int8WeightOnlyConfig(set_inductor_config=False)


def _int4_processor(group: int | None) -> Any:
    from torchao.prototype.quantization.int4 import PrototypeInt4WeightOnlyConfig

    return PrototypeInt4WeightOnlyConfig(group_size=group, set_inductor_config=False)


def _int4_tiles(group: int | None) -> Any:
    from torchao.quantization import Int4WeightOnlyConfig

    return Int4WeightOnlyConfig(
        group_size=group, int4_packing_format="tile_packed_to_4d", set_inductor_config=False
    )


LAYOUTS: dict[int, tuple[Layout, ...]] = {
    8: (Layout("one scale a row", ("cpu", "cuda"), _int8),),
    4: (
        Layout("packed for processors", ("cpu",), _int4_processor),
        Layout("tiles for CUDA", ("cuda",), _int4_tiles),
    ),
}
"""Layouts by bits of a weight, in the order in which they are tried."""


def require_torchao() -> None:
    """Raise InputError, with the command that installs it, if torchao cannot be imported."""
    try:
        silence_torchao()
        import torchao  # noqa: F401
    except ImportError as error:
        raise InputError(
            f"quantisation needs the package {PACKAGE}: {error}", where=PACKAGE, fix=INSTALL
        ) from error


def find_config(bits: int, group: int | None, dtype: str, device: str) -> Any:
    """torchao's configuration of the first layout that works. Raises InputError with every layout's reason.

    group: weights that share a scale, None for a whole row. dtype: of the products. device: its type, "cpu"
    or "cuda".
    """
    require_torchao()
    problems = []
    for layout in LAYOUTS[bits]:
        if device in layout.devices:
            problem = find_problem(layout, group, dtype, device)
            if problem is None:
                return layout.config(group)
            problems.append(f"{layout.name}: {problem}")
    reasons = "; ".join(problems) or "it has no layout for this device"
    raise InputError(f"torchao has no kernel for int{bits} weights in {dtype} here ({reasons})", where=device)


@cache
def find_problem(layout: Layout, group: int | None, dtype: str, device: str) -> str | None:
    """Why a layout does not do here, None if it does; found by a small product, once."""
    from torchao.quantization import quantize_

    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(ROWS, INPUTS, generator=generator).to(device, kind)
    plain, quantised = (nn.Linear(INPUTS, OUTPUTS, bias=False, device=device, dtype=kind) for _ in range(2))
    with torch.no_grad():
        plain.weight.copy_(torch.randn(OUTPUTS, INPUTS, generator=generator))
        quantised.weight.copy_(plain.weight)
        try:
            quantize_(quantised, layout.config(group))
            found, expected = quantised(states).float(), plain(states).float()
            error = float((found - expected).norm() / expected.norm())
            if not error <= FARTHEST:
                return f"products are off by {100 * error:.0f} %"
            longer = seconds_of(lambda: quantised(states)) / seconds_of(lambda: plain(states))
        except KERNEL_ERRORS as failure:
            return f"{type(failure).__name__}: {failure}"
    if longer > SLOWEST:
        return f"a product takes {longer:.0f} times as long as unquantised: no vector instructions"
    return None


def seconds_of(product: Callable[[], Any]) -> float:
    """Seconds of the fastest of a few rounds, which other programs disturb least."""
    product()
    samples: list[float] = []
    while len(samples) < _ROUNDS and sum(samples) < _SECONDS:
        began = time.perf_counter()
        product()
        samples.append(time.perf_counter() - began)
    return min(samples)


MOST_ROWS = 8
"""Rows up to which the kernel is clearly faster: its time grows with each."""

CLEARLY = 1.25
"""How much faster one row must be."""

CLOSE = 2.0**-6
"""Of the largest value: how far both ways of rounding to bfloat16 may lie apart."""


class Int8Linear(nn.Linear):
    """A linear layer with torchao's int8 weights.

    torchao converts all weights to the dtype of the states for every product, which pays for many rows. For
    up to MOST_ROWS rows this multiplies with the integers themselves, by the kernel that torch.compile would
    put there (aten::_weight_int8pack_mm): the same integers and scales, added up in float32.

    scales: [outputs], in the dtype of the states.
    """

    scales: Tensor

    @classmethod
    def of(cls, linear: nn.Linear) -> Int8Linear:
        """A layer with the weights of one that torchao has quantised."""
        made = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        made.weight, made.bias = linear.weight, linear.bias
        weight: Any = linear.weight
        made.register_buffer("scales", weight.scale.flatten().to(weight.dtype), persistent=False)
        return made.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:
        """[..., inputs] -> [..., outputs]."""
        rows = input.reshape(-1, self.in_features)
        if len(rows) > MOST_ROWS:
            return F.linear(input, self.weight, self.bias)
        weight: Any = self.weight
        product = torch._weight_int8pack_mm(rows.contiguous(), weight.qdata, self.scales)
        product = product if self.bias is None else product + self.bias
        return product.view(*input.shape[:-1], self.out_features)


@cache
def few_rows_pay(dtype: str, device: str) -> bool:
    """Whether torch's kernel multiplies one row clearly faster here than torchao does; tried once.

    It has vector instructions for bfloat16 only; in float32 products stay torchao's, bit for bit.
    """
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    kind = getattr(torch, dtype)
    generator = torch.Generator().manual_seed(0)
    row = torch.randn(1, INPUTS, generator=generator).to(device, kind)
    own = nn.Linear(INPUTS, OUTPUTS, bias=False, device=device, dtype=kind)
    with torch.no_grad():
        own.weight.copy_(torch.randn(OUTPUTS, INPUTS, generator=generator))
        quantize_(own, Int8WeightOnlyConfig(set_inductor_config=False))
        other = Int8Linear.of(own)
        try:
            found, expected = other(row).float(), own(row).float()
        except KERNEL_ERRORS:
            return False
        if not (found - expected).abs().max() <= CLOSE * expected.abs().max():
            return False
        return seconds_of(lambda: other(row)) * CLEARLY < seconds_of(lambda: own(row))


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
    from torchao.quantization import quantize_

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
