"""What a tracer that holds one layer at a time asks of a model's weights."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Protocol

from torch import nn


class StreamedLayers(Protocol):
    """The layers of a model whose weights stay on disk.

    layer_bytes: of each layer's weights as they are loaded. resident_bytes: of what stays in memory all the
    time (embedding, final norm, output head).
    """

    layer_bytes: tuple[int, ...]
    resident_bytes: int

    @property
    def waited_seconds(self) -> float:
        """How long `layer` has waited for the disk so far."""

    @property
    def read_seconds(self) -> float:
        """How long reading took altogether, in the background or not."""

    def layer(self, index: int, following: int | None = None) -> AbstractContextManager[nn.Module]:
        """The layer with its weights, from 0; they are dropped at the end of the context.

        following: the layer that is read ahead meanwhile, None for none.
        """
