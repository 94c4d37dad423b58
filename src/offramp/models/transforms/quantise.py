"""Weight-only quantisation by PyTorch's kernels: the weights of the layers' linear modules in 8 or 4 bits."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from offramp.errors import InputError, ModelError
from offramp.kit.arguments import settle_fields
from offramp.kit.rules import Must

if TYPE_CHECKING:
    from torch import nn

    from offramp.models.model import Model
    from offramp.models.shape import ModelShape
    from offramp.models.transforms.quantised_layers import Kernel

GROUPS = (32, 64, 128)
"""Weights that share a scale, as the int4 kernels take them."""

INPUTS_AT_ONCE, OUTPUTS_AT_ONCE = 16, 16
"""Inputs of a linear module that the int8 kernel takes together (it reads beyond the end of others), and
outputs that the int4 kernels handle together."""

SMALLEST_SHARE = 0.5
"""Of the layers' weights: with less of them quantised, the name of the transform would mislead."""


@dataclasses.dataclass(frozen=True)
class Quantised(ABC):
    """Weights of the layers' linear modules in few bits, products in bfloat16.

    Embedding, norms and output head stay as they are, as transformers' own quantisation leaves them; every
    exit is read through the head, which the tracer and the decoder multiply with in ways of their own.

    bits: of a weight. wanted: sizes that the kernels take, in words.
    """

    name: ClassVar[str]
    bits: ClassVar[int]
    wanted: ClassVar[str]

    @property
    @abstractmethod
    def text(self) -> str:
        """As written in the grammar, with everything that changes the result."""

    @property
    @abstractmethod
    def shared(self) -> int | None:
        """Weights of a row that share a scale, None for all of them."""

    @abstractmethod
    def fits(self, linear: nn.Linear) -> bool:
        """Whether the kernels take a linear module of this size."""

    def check(self, dtype: str | None = None) -> None:
        """Raise InputError where this machine's processor has no kernel for it: a product is tried, once.

        dtype: that the model is to be loaded in, which makes no difference.
        """
        from offramp.models.transforms.quantised_layers import find_kernel

        try:
            find_kernel(self.bits, self.shared, "cpu")
        except InputError as error:
            raise InputError(error.what, where=f"{self.text}, {error.where}", fix=error.fix) from error

    def apply(self, model: Model) -> Model:
        """The model with quantised weights; `model` itself is changed.

        Its shape is the one measured before, with the mean bytes that each layer's weights now take. A model
        whose weights stay on disk has each layer quantised when it is read.

        Raises ModelError if the model is quantised already, has a layer with less than half of its weights in
        linear modules that fit, or cannot run with them; InputError as `check` does.
        """
        from offramp.models.transforms.quantised_layers import find_kernel

        self._check_plain(model)
        kernel = find_kernel(self.bits, self.shared, next(model.hf.parameters()).device.type)
        identity = dataclasses.replace(model.identity, transforms=(*model.transforms, self.text))
        transform = self._in_memory if model.streamed is None else self._on_disk
        return transform(model, kernel).with_identity(identity)

    def _in_memory(self, model: Model, kernel: Kernel) -> Model:
        from offramp.models.discovery import find_stack, probe_ids
        from offramp.models.tensors import mean_element_bytes
        from offramp.models.transforms.quantised_layers import called_linears, quantise_linears

        layers = list(dict.fromkeys(model.stack.layers))
        ids = probe_ids(model.hf)
        chosen = self._chosen(model, called_linears(layers, lambda: model.hf(input_ids=ids, use_cache=False)))
        for layer in layers:
            quantise_linears(layer, kernel, self.shared, chosen)
        try:
            stack = find_stack(model.hf, name=model.name)
        except ModelError as error:
            raise self._unfit(error) from error
        sizes = [mean_element_bytes(layer) for layer in stack.layers]
        return dataclasses.replace(model, stack=stack, shape=_with_sizes(model.shape, sizes))

    def _on_disk(self, model: Model, kernel: Kernel) -> Model:
        """Of the layers that look alike, the first is read and run."""
        from offramp.models.transforms.quantised_layers import QuantisedLayers, streamed_linears, try_layer

        assert model.streamed is not None, "only called for a model whose weights stay on disk"
        first = {layer: index for index, layer in reversed(list(enumerate(model.shape.layers)))}
        alike = [first[layer] for layer in model.shape.layers]
        chosen = self._chosen(model, streamed_linears(model, model.streamed, alike))
        layers = QuantisedLayers(model.streamed, kernel, self.shared, chosen)
        try:
            sizes = {index: try_layer(model, layers, index) for index in dict.fromkeys(alike)}
        except ModelError as error:
            raise self._unfit(error) from error
        shape = _with_sizes(model.shape, [sizes[index] for index in alike])
        return dataclasses.replace(model, streamed=layers, shape=shape)

    def _unfit(self, error: ModelError) -> ModelError:
        return ModelError(
            f"the model does not run with {self.text}: {error.what}",
            where=error.where,
            fix="its family reads its weights in ways that quantised ones do not allow: use it as it is",
        )

    def _check_plain(self, model: Model) -> None:
        from offramp.models.tensors import is_wrapped

        before = any(map(is_quantisation, model.transforms))
        parameters = (parameter for layer in model.stack.layers for parameter in layer.parameters())
        if before or any(map(is_wrapped, parameters)):
            raise ModelError(
                f"{self.text} would quantise weights that are quantised already",
                where=", ".join((model.name, *model.transforms)),
                fix="use one kind of quantisation",
            )

    def _chosen(self, model: Model, linears: list[nn.Linear]) -> frozenset[nn.Linear]:
        """The linear modules that fit; refuses a model with a layer whose weights lie mostly elsewhere."""
        from offramp.models.measuring import count_parameters

        among = frozenset(linears)
        for number, layer in enumerate(model.stack.layers, start=1):
            own = [module for module in layer.modules() if module in among]
            fitting = [module for module in own if self.fits(module)]
            linear_share, share = (
                count_parameters(some) / count_parameters([layer]) for some in (own, fitting)
            )
            if linear_share < SMALLEST_SHARE:
                raise ModelError(
                    f"{self.text} would leave most of layer {number} as it is: linear modules hold "
                    f"{linear_share:.0%} of its weights",
                    where=model.name,
                    fix="linear modules alone are quantised, no stacked experts and no convolutions",
                )
            if share < SMALLEST_SHARE:
                odd = next(module for module in own if module not in fitting)
                raise ModelError(
                    f"{self.text} fits only {share:.0%} of the weights of layer {number}: one of its "
                    f"matrices has {odd.in_features} inputs and {odd.out_features} outputs",
                    where=model.name,
                    fix=self.wanted,
                )
        return frozenset(linear for linear in among if self.fits(linear))


def _with_sizes(shape: ModelShape, sizes: Sequence[float | None]) -> ModelShape:
    """The shape with the mean bytes of a weight of each layer."""
    pairs = zip(shape.layers, sizes, strict=True)
    layers = tuple(dataclasses.replace(layer, element_bytes=size) for layer, size in pairs)
    return dataclasses.replace(shape, layers=layers)


@dataclasses.dataclass(frozen=True)
class Int8(Quantised):
    """Weights in 8 bits with one scale for each row of a matrix.

    Symmetric: w is about scale x q, q a whole number from -127 to 127.
    """

    name: ClassVar[str] = "int8"
    bits: ClassVar[int] = 8
    wanted: ClassVar[str] = f"inputs must be a multiple of {INPUTS_AT_ONCE}"

    @property
    def text(self) -> str:
        """The name alone."""
        return self.name

    @property
    def shared(self) -> int | None:
        """One scale for a whole row."""
        return None

    def fits(self, linear: nn.Linear) -> bool:
        """Whether the kernel's blocks fill the inputs."""
        return linear.in_features % INPUTS_AT_ONCE == 0


@dataclasses.dataclass(frozen=True)
class Int4(Quantised):
    """Weights in 4 bits with a scale and a zero point for each group of a row.

    w is about scale x (q - 8) + zero, q a whole number from 0 to 15.

    Raises InputError for another group.
    """

    name: ClassVar[str] = "int4"
    bits: ClassVar[int] = 4
    wanted: ClassVar[str] = (
        f"inputs must be a multiple of group= ({', '.join(map(str, GROUPS))}), "
        f"outputs one of {OUTPUTS_AT_ONCE}"
    )

    group: Annotated[
        int, Must(GROUPS.__contains__, "one of 32, 64 and 128 weights", "write int4:group=32")
    ] = 32
    """Weights that share them, one of GROUPS. Linear modules whose inputs are no multiple of it stay as they
    are."""

    def __post_init__(self) -> None:
        settle_fields(self, where=lambda name: f"{name}=")

    @property
    def text(self) -> str:
        """With the group, which is never left out."""
        return f"{self.name}:group={self.group}"

    @property
    def shared(self) -> int | None:
        """The group."""
        return self.group

    def fits(self, linear: nn.Linear) -> bool:
        """Whether groups fill the inputs, and the kernels' blocks the outputs."""
        return linear.in_features % self.group == 0 and linear.out_features % OUTPUTS_AT_ONCE == 0


def is_quantisation(text: str) -> bool:
    """Whether the text of a transform is of one of those here."""
    return text.partition(":")[0] in (Int8.name, Int4.name)
