"""Running all batches through a model layer by layer, with the weights of one layer in memory at a time."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from offramp.models.calls import first_tensor
from offramp.models.recording import LayerCall, Recorder
from offramp.models.streaming.layers import StreamedLayers
from offramp.tracing.streamed.progress import LayerBar
from offramp.tracing.streamed.states import LayerStates

CALLS_BUDGET = 64_000_000
"""Bytes of layers' arguments kept in memory: masks, position embeddings. What is beyond is made anew."""


class BatchCalls:
    """What each layer is called with, batch by batch.

    batches: token ids, int64 [batch, positions] each. The arguments of all layers come from one pass through
    the model without its layers. They are kept for as many batches as fit `budget` bytes; for the others that
    pass, cheap beside a layer, is repeated for every layer.
    """

    def __init__(self, recorder: Recorder, batches: Sequence[Tensor], budget: int = CALLS_BUDGET) -> None:
        self._recorder = recorder
        self._batches = batches
        self._room = budget
        self._kept: dict[int, list[LayerCall]] = {}

    def __len__(self) -> int:
        """How many batches there are."""
        return len(self._batches)

    @property
    def device(self) -> torch.device:
        """Where the model takes its inputs."""
        return self._batches[0].device

    def positions(self, batch: int) -> int:
        """Tokens of a batch."""
        return self._batches[batch].numel()

    def first(self, batch: int) -> Tensor:
        """The hidden state that the first layer is given."""
        return self._record(batch)[0]

    def of(self, batch: int, layer: int) -> LayerCall:
        """The call of one layer, counted from 0."""
        calls = self._kept.get(batch)
        if calls is None:
            calls = self._record(batch)[1]
            size = _tensor_bytes(calls)
            if size <= self._room:
                self._room -= size
                self._kept[batch] = calls
        return calls[layer]

    def _record(self, batch: int) -> tuple[Tensor, list[LayerCall]]:
        with torch.no_grad():
            return self._recorder(input_ids=self._batches[batch], use_cache=False)


def _tensor_bytes(calls: Sequence[LayerCall]) -> int:
    """Bytes of the memory that the tensors among the arguments hold; what layers share counts once."""
    storages: dict[int, int] = {}

    def visit(value: Any) -> None:
        if isinstance(value, Tensor):
            storages[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        elif isinstance(value, (tuple, list)):
            for item in value:
                visit(item)
        elif isinstance(value, dict):
            visit(list(value.values()))

    for call in calls:
        visit([call.before, call.after, call.keywords])
    return sum(storages.values())


def missing_layers(states: LayerStates, kept: Collection[int], layers: int) -> list[int]:
    """Layers to compute, ascending: those wanted that are not there, and what leads to them.

    After a kill that is the layers above the last whole one; after damage, the damaged one and those below it
    down to the nearest whole one.
    """
    missing: list[int] = []
    for layer in reversed(range(layers)):
        wanted = layer in kept or (bool(missing) and missing[-1] == layer + 1)
        if wanted and not states.holds(layer):
            missing.append(layer)
    return missing[::-1]


@torch.no_grad()
def compute_layers(
    streamed: StreamedLayers, calls: BatchCalls, states: LayerStates, kept: Collection[int], bar: LayerBar
) -> None:
    """Bring the outputs of the kept layers, counted from 0, into the states: every batch through each layer.

    What is there already is not computed again. Other layers' outputs go as soon as the layer above has used
    them.
    """
    order = missing_layers(states, kept, len(streamed.layer_bytes))
    states.keep_only({*kept, *(layer - 1 for layer in order)})
    bar.begin(layers=len(order), tokens=sum(calls.positions(batch) for batch in range(len(calls))))
    for place, layer in enumerate(order):
        following = order[place + 1] if place + 1 < len(order) else None
        bar.reading(layer)
        with streamed.layer(layer, following=following) as module:
            bar.computing(layer)
            states.write(layer, _outputs(module, layer, calls, states, bar))
        states.keep_only({*kept, *(later - 1 for later in order[place + 1 :])})


def _outputs(
    module: nn.Module, layer: int, calls: BatchCalls, states: LayerStates, bar: LayerBar
) -> Iterator[Tensor]:
    """The outputs of all batches of one layer, each computed when it is asked for."""
    for batch in range(len(calls)):
        call = calls.of(batch, layer)
        hidden = calls.first(batch) if layer == 0 else states.read(layer - 1, batch).to(calls.device)
        arguments, keywords = call.arguments(hidden)
        yield first_tensor(module(*arguments, **keywords))
        bar.advance(calls.positions(batch))
