"""K,V maps as they are trained: relative changes of those that were fitted in closed form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.heads.parts import ExitMaps, Weights, tensor_of

Changes = Mapping[str, Tensor]
"""What is trained of one exit's maps, float32: "bias", and "inward" and "outward" or "change"."""


@dataclass(frozen=True)
class TrainableMaps:
    """The maps of one exit: start + scale * change, each by the name of its array, changes beginning at 0.

    One learning rate so fits numbers of any size (states of some features are hundreds of times larger than
    others), and AdamW's weight decay draws towards the start. The centre stays where it is. scale: of the
    shape of start or broadcast to it: the root mean square of a row or column of the start's matrices, and
    of what the maps add to an output for its bias.
    """

    maps: ExitMaps[Weights]
    start: Mapping[str, Tensor]
    scale: Mapping[str, Tensor]

    @classmethod
    def of(cls, maps: ExitMaps[Weights], device: torch.device) -> TrainableMaps:
        """Of fitted maps, on a device."""
        names = ("bias", "change") if maps.inward is None else ("bias", "inward", "outward")
        start = {name: tensor_of(getattr(maps, name)).to(device) for name in names}
        scale = {}
        if maps.inward is None:
            change = start["change"]
            rows, columns = _size(change, -1), _size(change, -2)
            scale["change"] = rows * columns / _size(change, (-1, -2)).clamp(min=TINY)
            scale["bias"] = _size(start["bias"], -1).expand_as(start["bias"])
        else:
            scale["inward"] = _size(start["inward"], -2)
            scale["outward"] = _size(start["outward"], -1)
            # The columns of V give numbers of variance 1 or less (`tracing.fitting.maps.shared_columns`).
            scale["bias"] = scale["outward"][..., 0]
        return cls(maps, start, {name: one.clamp(min=TINY) for name, one in scale.items()})

    def initial(self) -> dict[str, Tensor]:
        """Changes that leave the maps as they were."""
        return {name: torch.zeros_like(one) for name, one in self.start.items()}

    def values(self, changes: Changes) -> dict[str, Tensor]:
        """The arrays, by name, differentiable."""
        return {name: torch.addcmul(one, self.scale[name], changes[name]) for name, one in self.start.items()}

    def prepared(self, changes: Changes) -> ExitMaps[Tensor]:
        """What computes with them, differentiable."""
        values: Any = self.values(changes)
        maps = self.maps
        centre = tensor_of(maps.centre).to(values["bias"].device)
        return ExitMaps(**values, centre=centre, explained=maps.explained, penalty=maps.penalty)

    def trained(self, changes: Changes) -> ExitMaps[Weights]:
        """The maps as a file holds them."""
        arrays = {name: one.detach().cpu().numpy() for name, one in self.values(changes).items()}
        found: Any = {name: np.ascontiguousarray(one) for name, one in arrays.items()}
        return replace(self.maps, **found)


TINY = 1e-8


def _size(values: Tensor, axes: int | tuple[int, ...]) -> Tensor:
    """Root mean square over some axes, which stay with length 1."""
    return values.square().mean(axes, keepdim=True).sqrt()
