"""Streamed runs that are stopped on the way, and what they leave."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from stored_traces import run
from torch import nn
from tracing_models import tiny_llama

from offramp.models.model import Model
from offramp.tracing.states import STATES_FOLDER


class Stopped(Exception):
    """Ends a run at a chosen moment."""


def states_of(folder: Path) -> list[str]:
    """Names of the files among the states."""
    return sorted(path.name for path in (folder / STATES_FOLDER).glob("*"))


def stop_at(layer: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop a run when it asks for a layer's weights."""
    real = LayersApart.layer

    def stopping(layers: LayersApart, index: int, following: int | None = None) -> Any:
        if index == layer:
            raise Stopped
        return real(layers, index, following)

    monkeypatch.setattr(LayersApart, "layer", stopping)


def stopped_run(folder: Path, monkeypatch: pytest.MonkeyPatch, layer: int, **options: Any) -> None:
    with monkeypatch.context() as patch:
        stop_at(layer, patch)
        with pytest.raises(Stopped):
            run(folder, model=streamed(tiny_llama())[0], **options)


def trace_tokens() -> Sequence[int]:
    """Tokens of each context of the trace that these tests make: a text's last token is only predicted."""
    from killed_runs import LENGTHS

    return [length - 1 for length in LENGTHS]


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
    stack = copy.deepcopy(model.stack)
    assert stack.head is not None
    stack = dataclasses.replace(stack, head_weight=stack.head.weight.detach())  # as a model has it: no copy
    copied = dataclasses.replace(model, stack=stack, hf=stack.hf)
    layers = LayersApart(copied, log)
    return dataclasses.replace(copied, streamed=layers), layers
