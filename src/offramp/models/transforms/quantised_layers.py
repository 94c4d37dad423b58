"""Layers that stay on disk, quantised each time that one is read."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import nn

from offramp.errors import ModelError
from offramp.models.discovery import UNFIT_ERRORS, probe_ids
from offramp.models.model import Model
from offramp.models.recording import Recorder
from offramp.models.stored import mean_element_bytes
from offramp.models.streaming.layers import StreamedLayers
from offramp.models.transforms.linear_modules import called_linears, quantise_linears


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
