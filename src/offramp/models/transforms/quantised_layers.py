"""Layers of quantised weights: PyTorch's kernels, each tried once, and the weights that they multiply."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
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
from offramp.models.streaming import StreamedLayers
from offramp.models.tensors import is_wrapped, mean_element_bytes

PRECISION = torch.bfloat16
"""Of states, scales and products: the only one for which the kernels have vector instructions everywhere."""

ROWS, INPUTS, OUTPUTS = 16, 512, 1024
"""Sizes of the product that is tried."""

FARTHEST = 0.25
"""Root mean square of a product's error over that of the product: about 0.1 for 4 bits in groups."""

SLOWEST = 12.0
"""How many times as long as the unquantised product: less than 1 with vector instructions, 50 in a plain
loop."""

_ROUNDS = 30
_SECONDS = 0.1

LARGEST_8, LARGEST_4, MIDDLE_4 = 127, 15, 8
"""The largest whole numbers of a weight, and the one that stands for a group's zero point."""
LEAST = 1e-8
"""The least scale, so that weights that are all alike have one."""
INNER_TILES = 8
"""Of the CUDA layout: sixteen inputs each, next to each other."""

# What torch raises where it lacks a kernel, or one does not take a size.
KERNEL_ERRORS = (NotImplementedError, RuntimeError, ValueError, TypeError, AttributeError)

Packed = tuple[Tensor, Tensor]
"""Whole numbers as a kernel wants them, and their scales."""


@dataclass(frozen=True)
class Kernel:
    """One of PyTorch's weight-only kernels, with the layout that it wants."""

    name: str
    bits: int
    device: str
    """Its type."""
    pack: Callable[[Tensor, int], Packed]
    """Of float32 weights [outputs, inputs], and how many of a row share a scale."""
    multiply: Callable[[Tensor, Tensor, int, Tensor], Tensor]
    """States [rows, inputs], whole numbers, how many share a scale, scales -> [rows, outputs]."""


def _pack_8(weights: Tensor, group: int) -> Packed:
    scales = (weights.abs().amax(1) / LARGEST_8).clamp(min=LEAST).to(PRECISION)
    numbers = (weights / scales.float()[:, None]).round().clamp(-LARGEST_8, LARGEST_8)
    return numbers.to(torch.int8).contiguous(), scales


def _multiply_8(states: Tensor, numbers: Tensor, group: int, scales: Tensor) -> Tensor:
    return torch._weight_int8pack_mm(states, numbers, scales)


def _numbers_4(weights: Tensor, group: int) -> Packed:
    """int32 [outputs, inputs] of 0 to 15, and scales with zero points [groups, outputs, 2]."""
    outputs, inputs = weights.shape
    grouped = weights.view(outputs, inputs // group, group)
    low, high = grouped.amin(-1, keepdim=True), grouped.amax(-1, keepdim=True)
    scales = ((high - low) / LARGEST_4).clamp(min=LEAST).to(PRECISION)
    zeros = (low + scales.float() * MIDDLE_4).to(PRECISION)
    numbers = ((grouped - zeros.float()) / scales.float() + MIDDLE_4).round().clamp(0, LARGEST_4)
    both = torch.cat([scales, zeros], dim=-1).transpose(0, 1).contiguous()
    return numbers.to(torch.int32).view(outputs, inputs), both


def _pack_4(weights: Tensor, group: int) -> Packed:
    numbers, scales = _numbers_4(weights, group)
    return torch.ops.aten._convert_weight_to_int4pack_for_cpu(numbers, 1), scales


def _multiply_4(states: Tensor, numbers: Tensor, group: int, scales: Tensor) -> Tensor:
    product: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(states, numbers, group, scales)
    return product


def _pack_4_tiles(weights: Tensor, group: int) -> Packed:
    numbers, scales = _numbers_4(weights, group)
    pairs = (numbers[:, ::2] << 4 | numbers[:, 1::2]).to(torch.uint8)
    return torch.ops.aten._convert_weight_to_int4pack(pairs, INNER_TILES), scales


def _multiply_4_tiles(states: Tensor, numbers: Tensor, group: int, scales: Tensor) -> Tensor:
    return torch._weight_int4pack_mm(states, numbers, group, scales)


KERNELS = (
    Kernel("one scale a row", 8, "cpu", _pack_8, _multiply_8),
    Kernel("one scale a row", 8, "cuda", _pack_8, _multiply_8),
    Kernel("packed for processors", 4, "cpu", _pack_4, _multiply_4),
    Kernel("tiles", 4, "cuda", _pack_4_tiles, _multiply_4_tiles),
)
"""All that PyTorch has, at most one for bits and a device. Those of CUDA were not run yet."""


def find_kernel(bits: int, group: int | None, device: str) -> Kernel:
    """The kernel for weights of so many bits that works. Raises InputError with the reason if none does.

    group: weights that share a scale, None for a whole row. device: its type, "cpu" or "cuda".
    """
    kernel = next((one for one in KERNELS if (one.bits, one.device) == (bits, device)), None)
    problem = "PyTorch has none for this device" if kernel is None else find_problem(kernel, group)
    if kernel is None or problem is not None:
        raise InputError(f"there is no kernel for int{bits} weights here: {problem}", where=device)
    return kernel


@cache
def find_problem(kernel: Kernel, group: int | None) -> str | None:
    """Why a kernel does not do here, None if it does; found by a small product, once."""
    generator = torch.Generator().manual_seed(0)
    states, weights = (
        torch.randn(rows, INPUTS, generator=generator).to(kernel.device, PRECISION)
        for rows in (ROWS, OUTPUTS)
    )
    with torch.no_grad():
        try:
            packed = PackedWeight.of(weights, kernel, group)
            found, expected = F.linear(states, packed).float(), F.linear(states, weights).float()
            error = float((found - expected).norm() / expected.norm())
            if not error <= FARTHEST:
                return f"products are off by {100 * error:.0f} %"
            longer = seconds_of(lambda: F.linear(states, packed)) / seconds_of(
                lambda: F.linear(states, weights)
            )
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


class PackedWeight(Tensor):
    """The weights [outputs, inputs] of a linear module in few bits, as a kernel wants them.

    It has the size, the dtype and the device of the weights that it stands for, and can be multiplied with
    (`F.linear`) and copied; anything else raises NotImplementedError. States are rounded to bfloat16 before a
    product, which is given back in their dtype.

    numbers, scales: that hold it.
    """

    numbers: Tensor
    scales: Tensor
    kernel: Kernel
    group: int

    @staticmethod
    def __new__(
        cls,
        numbers: Tensor,
        scales: Tensor,
        kernel: Kernel,
        group: int,
        shape: torch.Size,
        dtype: torch.dtype,
    ) -> PackedWeight:
        """One whose elements lie elsewhere."""
        made = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=numbers.device)
        made.numbers, made.scales, made.kernel, made.group = numbers, scales, kernel, group
        return made

    def __init__(self, *parts: object) -> None:
        """All is done by `__new__`, since Tensor's takes nothing."""

    @classmethod
    def of(cls, weights: Tensor, kernel: Kernel, group: int | None) -> PackedWeight:
        """Weights in few bits. group: that share a scale, None for a whole row."""
        shared = weights.shape[1] if group is None else group
        numbers, scales = kernel.pack(weights.detach().float(), shared)
        return cls(numbers, scales, kernel, shared, weights.shape, weights.dtype)

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """The names of what holds the elements, as torch asks for it."""
        return ["numbers", "scales"], None

    @classmethod
    def __torch_function__(
        cls,
        function: Any,
        types: Collection[type],
        given: Sequence[Any] = (),
        named: Mapping[str, Any] | None = None,
    ) -> Any:
        """A product is the kernel's."""
        if function is F.linear:
            return _linear(*given, **(named or {}))
        usual: Callable[..., Any] = super().__torch_function__
        return usual(function, types, given, named or {})

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch says that its own is no class method
        cls, func: Any, types: Iterable[type], args: tuple[Any, ...], kwargs: dict[Any, Any]
    ) -> Any:
        """A copy of what holds the elements, and nothing else."""
        if func not in (torch.ops.aten.detach.default, torch.ops.aten.clone.default):
            raise NotImplementedError(f"{func} of weights in few bits")
        own: PackedWeight = args[0]
        parts = (func(own.numbers), func(own.scales))
        return cls(*parts, own.kernel, own.group, own.shape, own.dtype)


def _linear(input: Tensor, weight: PackedWeight, bias: Tensor | None = None) -> Tensor:
    """[..., inputs] -> [..., outputs]."""
    # A size of the weight's own would be asked for by way of `__torch_function__`, for every product.
    rows = input.reshape(-1, input.shape[-1]).to(PRECISION).contiguous()
    product = weight.kernel.multiply(rows, weight.numbers, weight.group, weight.scales).to(input.dtype)
    product = product if bias is None else product + bias
    return product.view(*input.shape[:-1], -1)


def linear_modules(layer: nn.Module) -> Iterator[nn.Linear]:
    """The linear modules of a layer; an attention's own output projection is none, since it is not called."""
    for module in layer.modules():
        if isinstance(module, nn.Linear) and not isinstance(module, NonDynamicallyQuantizableLinear):
            yield module


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
    parents = [
        (module, child) for layer in layers for module in layer.modules() for child in module.children()
    ]
    unread = {child for parent, child in parents if child in called or parent not in called}
    found = dict.fromkeys(linear for layer in layers for linear in linear_modules(layer))
    return [linear for linear in found if linear in unread]


def quantise_linears(
    layer: nn.Module, kernel: Kernel, group: int | None, chosen: Collection[nn.Module]
) -> list[nn.Linear]:
    """Quantise a layer's linear modules that are among the chosen ones, in place; returns them.

    group: as of `find_kernel`.
    """
    found = [linear for linear in linear_modules(layer) if linear in chosen]
    for linear in found:
        if not is_wrapped(linear.weight):
            packed = PackedWeight.of(linear.weight, kernel, group)
            linear.weight = nn.Parameter(packed, requires_grad=False)
    return found


class QuantisedLayers:
    """`StreamedLayers` whose linear modules are quantised each time that a layer has been read.

    streamed: the layers as they are stored; sizes and times are theirs. kernel, group, chosen: as of
    `quantise_linears`.
    """

    def __init__(
        self, streamed: StreamedLayers, kernel: Kernel, group: int | None, chosen: Collection[nn.Module]
    ) -> None:
        self._streamed = streamed
        self._kernel, self._group, self._chosen = kernel, group, chosen
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
            found = quantise_linears(module, self._kernel, self._group, self._chosen)
            try:
                yield module
            finally:
                for linear in found:  # as it was before its weights were read
                    empty = torch.empty(linear.weight.shape, dtype=linear.weight.dtype, device="meta")
                    linear.weight = nn.Parameter(empty, requires_grad=False)


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
