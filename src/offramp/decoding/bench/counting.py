"""How many layers really run: hooks of the bench's own, whatever a decoder says."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

from offramp.models.calls import first_tensor
from offramp.models.stack import ExitStack


class LayerCount:
    """Executions counted by hooks.

    calls: how often each layer ran, in order. rows: rows (sequences times positions) times layers.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._places: dict[nn.Module, list[int]] = {}
        for place, layer in enumerate(stack.layers):
            self._places.setdefault(layer, []).append(place)
        self.calls = [0] * len(stack)
        self.rows = 0

    def _ran(self, layer: nn.Module, arguments: Any, output: Any) -> None:
        # A layer that stands at several places (shared weights) counts for the first of them.
        self.calls[self._places[layer][0]] += 1
        shape = first_tensor(output).shape
        self.rows += shape[0] * shape[1]

    @contextmanager
    def attached(self) -> Iterator[None]:
        """Hooks on every layer; removed whatever happens."""
        handles = [layer.register_forward_hook(self._ran) for layer in self._places]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
