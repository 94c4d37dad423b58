from __future__ import annotations

import contextlib
import copy
import dataclasses
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from quantised_cases import EVERY, IDS
from torch import nn

from offramp.errors import ModelError
from offramp.models.calls import Recorder, first_tensor
from offramp.models.model import Model
from offramp.models.tensors import is_wrapped
from offramp.models.transforms.quantise import Int8, Quantised
from offramp.testing.transforms import example_model


class Streamed:
    """The layers of a model in memory, read as if they stayed on disk; says which ones were."""

    def __init__(self, layers: Any) -> None:
        self.layers = layers
        self.weights = [copy.deepcopy(layer.state_dict()) for layer in layers]
        self.layer_bytes = (1,) * len(layers)
        self.resident_bytes = 2
        self.waited_seconds = 3.0
        self.read_seconds = 4.0
        self.read: list[tuple[int, int | None]] = []
        for layer in layers:
            layer.to("meta")

    @contextlib.contextmanager
    def layer(self, index: int, following: int | None = None) -> Iterator[nn.Module]:
        self.read.append((index, following))
        layer = self.layers[index]
        layer.load_state_dict(self.weights[index], assign=True)
        layer.requires_grad_(False)
        try:
            yield layer
        finally:
            layer.to("meta")


def streamed_example(dtype: str) -> tuple[Model, Streamed]:
    model = example_model(dtype)
    streamed = Streamed(model.hf.model.layers)
    return dataclasses.replace(model, streamed=streamed), streamed


@pytest.mark.parametrize(("transform", "dtype"), EVERY)
def test_streamed_layers_are_quantised_as_they_are_read(transform: Quantised, dtype: str) -> None:
    in_memory = transform.apply(example_model(dtype))
    expected: list[torch.Tensor] = []
    in_memory.stack.capture(IDS, lambda index, before, after: expected.append(after.clone()))
    given, source = streamed_example(dtype)
    model = transform.apply(given)
    assert source.read == [(0, None)] * 2  # all six look alike: what it calls, then with few bits
    assert (model.shape, model.identity) == (in_memory.shape, in_memory.identity)
    streamed: Any = model.streamed
    assert (streamed.layer_bytes, streamed.resident_bytes) == ((1,) * 6, 2)
    assert (streamed.waited_seconds, streamed.read_seconds) == (3.0, 4.0)
    with torch.no_grad():
        for _ in range(2):
            hidden, calls = Recorder(model.stack)(input_ids=IDS, use_cache=False)
            for index, call in enumerate(calls):
                arguments, keywords = call.arguments(hidden)
                with streamed.layer(index, following=index + 1) as layer:
                    hidden = first_tensor(layer(*arguments, **keywords))
                assert torch.equal(hidden, expected[index])
                assert all(weight.is_meta for weight in layer.parameters())
                assert not any(is_wrapped(weight) for weight in layer.parameters())
    assert source.read[2:] == [(index, index + 1) for index in range(6)] * 2


def test_a_streamed_layer_that_cannot_run_so_is_named() -> None:
    given, source = streamed_example("float32")
    mlp = source.layers[0].mlp
    own = mlp.forward
    mlp.forward = lambda states: own(states) + mlp.up_proj.weight.sum()
    with pytest.raises(ModelError, match="does not run with int8: layer 1 fails: NotImplementedError"):
        Int8().apply(given)


def test_a_streamed_model_is_not_quantised_twice() -> None:
    model = Int8().apply(streamed_example("float32")[0])
    with pytest.raises(ModelError, match="quantised already"):
        Int8().apply(model)
