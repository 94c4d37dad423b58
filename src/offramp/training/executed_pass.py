"""Layers of given texts as they are executed: tokens that left go past them, differentiable through the rest.

With a frozen base all that early exits do to a token that stays is what it attends to: K and V of deeper
layers that are made of the states of tokens that left. A state at the first exit that is checked is exact,
since K and V up to it are.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from offramp.decoding.engine.engine import Engine, Meter
from offramp.decoding.engine.sequences import Sequences
from offramp.decoding.rerun.parallel import Carried, InputsAfter
from offramp.heads.parts import ExitMaps

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
