"""Models whose layers lie apart from them: what is not handed out by `layer` has no weights."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import nn

from offramp.models.model import Model


class LayersApart:
    """Layers taken out of a model in memory, handed out one at a time.

    read: the layers that were handed out, in order; log: a file to which they are written too.
    """

    waited_seconds = 0.0
    read_seconds = 0.0

    def __init__(self, model: Model, log: Path | None = None) -> None:
        self._layers = copy.deepcopy(model.stack.layers)
        self.layer_bytes = tuple(
            sum(weight.numel() * weight.element_size() for weight in layer.parameters())
            for layer in self._layers
        )
        self.resident_bytes = 0
        self.read: list[int] = []
        self.log = log
        for layer in model.stack.layers:
            layer.to("meta")

    @contextmanager
    def layer(self, index: int, following: int | None = None) -> Iterator[nn.Module]:
        """The layer with its weights."""
        self.read.append(index)
        if self.log is not None:
            with self.log.open("a") as file:
                file.write(f"{index}\n")
        yield self._layers[index]


def streamed(model: Model, log: Path | None = None) -> tuple[Model, LayersApart]:
    """A model like this one whose layers have no weights; the given one stays as it is."""
    # One copy of everything, so that the stack's modules are the copied model's.
    copied = dataclasses.replace(model, stack=copy.deepcopy(model.stack))
    copied = dataclasses.replace(copied, hf=copied.stack.hf)
    layers = LayersApart(copied, log)
    return dataclasses.replace(copied, streamed=layers), layers
