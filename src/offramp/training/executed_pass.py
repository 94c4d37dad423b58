"""Layers of given texts as they are executed: tokens that left go past them, differentiable through the rest.

With a frozen base all that early exits do to a token that stays is what it attends to: K and V of deeper
layers that are made of the states of tokens that left. A state at the first exit that is checked is exact,
since K and V up to it are. What is trained are relative changes of the maps that make these.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from offramp.decoding.engine.engine import Engine, Meter
from offramp.decoding.engine.sequences import Sequences
from offramp.decoding.rerun.parallel import Carried, InputsAfter
from offramp.heads.parts import ExitMaps, Weights, tensor_of

Leaving = Callable[[int, Tensor], Tensor]
"""Of an exit and all states after its layer [batch, positions, hidden]: where, among [batch x positions], the
tokens lie that leave there, int64 [leaving]."""


@dataclass(frozen=True)
class Started:
    """States [batch, positions, hidden] after the first `depth` layers."""

    depth: int
    hidden: Tensor


def run_executed(
    engine: Engine,
    ids: Tensor,
    exits: Collection[int],
    leaving: Leaving,
    inputs_after: InputsAfter,
    started: Started | None = None,
) -> Tensor:
    """States after layer L [batch, positions, hidden], of meaning where a token has not left.

    ids: int64 [batch, positions]. exits: where tokens may leave, below L. inputs_after: what deeper layers
    are given by tokens that left, which gradients flow into. started: states after as many layers as the
    first exit or fewer; by default the embedding. What is computed of a token that left is thrown away, as in
    `offramp.decoding.rerun.parallel.ParallelPass`; the K and V that its states leave behind are not.
    """
    sequences = Sequences(engine, ids, None, Meter())
    inputs = sequences.inputs(0, ids.shape[1])
    depth, hidden = (0, inputs.hidden) if started is None else (started.depth, started.hidden)
    carried = Carried(inputs_after)
    while depth < engine.layers:
        if depth in exits:
            places = leaving(depth, hidden.detach())
            if len(places):
                states = hidden.reshape(-1, hidden.shape[-1])[places].unsqueeze(1)
                carried.leave(depth, places, states)
        hidden = sequences.run_differentiable(hidden, inputs, depth, depth + 1)
        depth += 1
        if depth < engine.layers:
            hidden = carried.put_back(depth, hidden)
    return hidden


def mapped_inputs(layers: int, maps: Mapping[int, ExitMaps[Tensor]]) -> InputsAfter:
    """What deeper layers are given through maps by exit, differentiable, else as `StateMaps.inputs_after`."""

    def inputs_after(exit: int, hidden: Tensor) -> list[Tensor]:
        if exit >= layers - 1:
            return [hidden] * (layers - exit)
        deeper = maps[exit](hidden.reshape(-1, hidden.shape[-1]).to(maps[exit].centre.dtype))
        return [hidden, *(state.to(hidden.dtype).view(hidden.shape) for state in deeper)]

    return inputs_after


def places_of(left: Tensor) -> Tensor:
    """Where tokens lie among all: int64 [leaving] of bool [batch, positions]."""
    return torch.nonzero(left.reshape(-1))[:, 0]


TINY = 1e-8

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
        return cls(maps, start, {name: size.clamp(min=TINY) for name, size in scale.items()})

    def initial(self) -> dict[str, Tensor]:
        """Changes that leave the maps as they were."""
        return {name: torch.zeros_like(array) for name, array in self.start.items()}

    def values(self, changes: Changes) -> dict[str, Tensor]:
        """The arrays, by name, differentiable."""
        return {
            name: torch.addcmul(array, self.scale[name], changes[name]) for name, array in self.start.items()
        }

    def prepared(self, changes: Changes) -> ExitMaps[Tensor]:
        """What computes with them, differentiable."""
        values: Any = self.values(changes)
        maps = self.maps
        centre = tensor_of(maps.centre).to(values["bias"].device)
        return ExitMaps(**values, centre=centre, explained=maps.explained, penalty=maps.penalty)

    def trained(self, changes: Changes) -> ExitMaps[Weights]:
        """The maps as a file holds them."""
        arrays = {name: array.detach().cpu().numpy() for name, array in self.values(changes).items()}
        contiguous: Any = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
        return replace(self.maps, **contiguous)


def _size(values: Tensor, axes: int | tuple[int, ...]) -> Tensor:
    """Root mean square over some axes, which stay with length 1."""
    return values.square().mean(axes, keepdim=True).sqrt()
