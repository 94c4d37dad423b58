"""Weight-only quantisation by torchao: the weights of the layers' linear modules in 8 or 4 bits."""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

from offramp.errors import InputError, ModelError
from offramp.kit.arguments import settle_fields
from offramp.kit.rules import Must
from offramp.models.shape import DTYPES

if TYPE_CHECKING:
    from torch import nn

    from offramp.models.model import Model
    from offramp.models.shape import ModelShape

PACKAGE = "torchao"

GROUPS = (32, 64, 128)
"""Weights that share a scale, as torchao's int4 kernels take them."""

OUTPUTS_AT_ONCE = 16
"""Outputs of a linear module that the int4 kernels handle together."""

SMALLEST_SHARE = 0.5
"""Of the layers' weights: with less of them quantised, the name of the transform would mislead."""


@dataclasses.dataclass(frozen=True)
class Quantised(ABC):
    """Weights of the layers' linear modules in few bits, products still in the model's dtype.

    Embedding, norms and output head stay as they are, as transformers' own quantisation leaves them; every
    exit is read through the head, which the tracer and the decoder multiply with in ways of their own.

    bits: of a weight.
    """

    name: ClassVar[str]
    bits: ClassVar[int]

    @property
    @abstractmethod
    def text(self) -> str:
        """As written in the grammar, with everything that changes the result."""

    @property
    @abstractmethod
    def shared(self) -> int | None:
        """Weights of a row that share a scale, None for all of them."""

    def fits(self, linear: nn.Linear) -> bool:
        """Whether torchao's kernels take a linear module of this size."""
        return True

    def check(self, dtype: str | None = None) -> None:
        """Raise InputError without torchao, or where it has no kernel for this machine's processor.

        dtype: that the model is to be loaded in; None to refuse only what fits none. A small product is
        tried, once.
        """
        from offramp.models.transforms.quantised_layers import find_config

        failed: dict[str, InputError] = {}
        working: str | None = None
        for known in sorted(DTYPES, key=lambda one: one != dtype):  # the one that is asked for first
            try:
                find_config(self.bits, self.shared, known, "cpu")
            except InputError as error:
                failed[known] = error
            else:
                working = known
                break
        if dtype in failed or working is None:
            problem = failed[dtype or DTYPES[0]]
            fix = problem.fix if working is None else f"load the model in {working} (--dtype {working})"
            raise InputError(problem.what, where=f"{self.text}, {problem.where}", fix=fix)

    def apply(self, model: Model) -> Model:
        """The model with quantised weights; `model` itself is changed.

        Its shape is the one measured before, with the mean bytes that each layer's weights now take. A model
        whose weights stay on disk has each layer quantised when it is read.

        Raises ModelError if the model is quantised already, has a layer with less than half of its weights in
        linear modules that fit, or cannot run with them; InputError as `check` does.
        """
        from offramp.models.transforms.quantised_layers import find_config

        self._check_plain(model)
        device = next(model.hf.parameters()).device.type
        config = find_config(self.bits, self.shared, model.dtype, device)
        identity = dataclasses.replace(model.identity, transforms=(*model.transforms, self.text))
        transform = self._in_memory if model.streamed is None else self._on_disk
        return transform(model, config).with_identity(identity)

    def _in_memory(self, model: Model, config: Any) -> Model:
        from offramp.models.discovery import find_stack, probe_ids
        from offramp.models.tensors import mean_element_bytes
        from offramp.models.transforms.quantised_layers import called_linears, quantise_linears

        layers = list(dict.fromkeys(model.stack.layers))
        ids = probe_ids(model.hf)
        chosen = self._chosen(model, called_linears(layers, lambda: model.hf(input_ids=ids, use_cache=False)))
        for layer in layers:
            quantise_linears(layer, config, chosen)
        try:
            stack = find_stack(model.hf, name=model.name)
        except ModelError as error:
            raise self._unfit(error) from error
        sizes = [mean_element_bytes(layer) for layer in stack.layers]
        return dataclasses.replace(model, stack=stack, shape=_with_sizes(model.shape, sizes))

    def _on_disk(self, model: Model, config: Any) -> Model:
        """Of the layers that look alike, the first is read and run."""
        from offramp.models.transforms.quantised_layers import QuantisedLayers, streamed_linears, try_layer

        assert model.streamed is not None, "only called for a model whose weights stay on disk"
        first = {layer: index for index, layer in reversed(list(enumerate(model.shape.layers)))}
        alike = [first[layer] for layer in model.shape.layers]
        chosen = self._chosen(model, streamed_linears(model, model.streamed, alike))
        layers = QuantisedLayers(model.streamed, config, chosen)
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
                    fix="torchao quantises linear modules alone, no stacked experts and no convolutions",
                )
            if share < SMALLEST_SHARE:
                odd = next(module for module in own if module not in fitting)
                raise ModelError(
                    f"{self.text} fits only {share:.0%} of the weights of layer {number}: one of its "
                    f"matrices has {odd.in_features} inputs and {odd.out_features} outputs",
                    where=model.name,
                    fix=f"inputs must be a multiple of group= ({', '.join(map(str, GROUPS))}), outputs one "
                    f"of {OUTPUTS_AT_ONCE}",
                )
        return frozenset(linear for linear in among if self.fits(linear))


def _with_sizes(shape: ModelShape, sizes: Sequence[float | None]) -> ModelShape:
    """The shape with the mean bytes of a weight of each layer."""
    pairs = zip(shape.layers, sizes, strict=True)
    layers = tuple(dataclasses.replace(layer, element_bytes=size) for layer, size in pairs)
    return dataclasses.replace(shape, layers=layers)


@dataclasses.dataclass(frozen=True)
class Int8(Quantised):
    """Weights in 8 bits with one scale for each row of a matrix (torchao, int8 weight-only).

    Symmetric: w is about scale x q, q a whole number from -128 to 127.
    """

    name: ClassVar[str] = "int8"
    bits: ClassVar[int] = 8

    @property
    def text(self) -> str:
        """The name alone."""
        return self.name

    @property
    def shared(self) -> int | None:
        """One scale for a whole row."""
        return None


@dataclasses.dataclass(frozen=True)
class Int4(Quantised):
    """Weights in 4 bits with a scale and a zero point for each group of a row (torchao, int4 weight-only).

    Raises InputError for another group.
    """

    name: ClassVar[str] = "int4"
    bits: ClassVar[int] = 4

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
