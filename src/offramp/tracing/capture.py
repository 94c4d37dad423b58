"""Where the layers' inputs and outputs of a batch come from: a forward pass, or states that were kept."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from offramp.models.stack import ExitStack, OnLayer
from offramp.workloads.packing import Context

Capture = Callable[[Sequence[Context], OnLayer], None]
"""Hands on_layer(index, input, output) of contexts of one length over, layer by layer as `ExitStack.capture`
does; layers that are no exit may be left out."""


def ids_of(contexts: Sequence[Context]) -> Tensor:
    """Token ids of contexts of one length, int64 [contexts, positions]."""
    return torch.tensor([context.ids for context in contexts])


def forward_capture(stack: ExitStack) -> Capture:
    """Runs the model's own layers."""

    def capture(contexts: Sequence[Context], on_layer: OnLayer) -> None:
        stack.capture(ids_of(contexts), on_layer)

    return capture
