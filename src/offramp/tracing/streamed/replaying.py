"""Handing over the layers' inputs and outputs of a batch from kept states, as a forward pass would."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from offramp.models.stack import OnLayer
from offramp.tracing.streamed.layers import BatchCalls
from offramp.tracing.streamed.states import LayerStates
from offramp.workloads.packing import Context


class Replay:
    """A `Capture` of batches that all went through the layers before.

    batches: those the states are of, in order. layers: whose inputs and outputs are handed over, from 0,
    ascending.
    """

    def __init__(
        self,
        states: LayerStates,
        calls: BatchCalls,
        batches: Sequence[Sequence[Context]],
        layers: Sequence[int],
    ) -> None:
        self._states = states
        self._calls = calls
        self._numbers = {_name(batch): number for number, batch in enumerate(batches)}
        self._layers = layers

    def __call__(self, contexts: Sequence[Context], on_layer: OnLayer) -> None:
        """Hand over one batch; an output is the very tensor that comes in as the next layer's input."""
        batch = self._numbers[_name(contexts)]
        last: tuple[int, Tensor] | None = None
        for layer in self._layers:
            if last is not None and last[0] == layer - 1:
                before = last[1]
            elif layer == 0:
                before = self._calls.first(batch)
            else:
                before = self._states.read(layer - 1, batch)
            after = self._states.read(layer, batch)
            on_layer(layer, before, after)
            last = (layer, after)


def _name(contexts: Sequence[Context]) -> tuple[tuple[int, int], ...]:
    """What tells a batch from all others of a plan."""
    return tuple((context.document, context.start) for context in contexts)
