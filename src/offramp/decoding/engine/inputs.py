"""What the layers are given for some positions, and the position ids of tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.models.recording import LayerCall


@dataclass(frozen=True)
class Inputs:
    """What the layers are given for the tokens at positions start..end-1.

    hidden: the embedding [rows, end - start, hidden]. calls: the other arguments of every layer.
    """

    start: int
    end: int
    hidden: Tensor
    calls: list[LayerCall]


def token_positions(ids: Tensor, mask: Tensor | None, start: int, end: int) -> Tensor:
    """Position ids of tokens start..end-1 as `generate()` makes them, padding left out: int64 [batch, n].

    Given even without padding: some families count from 0 in every block if they are not told.
    """
    if mask is None:
        return torch.arange(start, end, device=ids.device).expand(len(ids), -1)
    return (mask[:, :end].cumsum(1) - 1).clamp(min=0)[:, start:]
