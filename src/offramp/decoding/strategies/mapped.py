"""K and V of skipped layers are projected from what fitted maps say that the layers would have been given."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from offramp.decoding.compatibility import check_maps
from offramp.decoding.engine.sequences import States
from offramp.decoding.strategies.propagate import LeftStates, Propagate
from offramp.decoding.strategies.strategy import Request, Work


class Mapped(Propagate):
    """As `Propagate`, but each skipped layer is given the exit's state through an affine map of its own.

    The maps are ridge regressions of the deeper layers' outputs (`offramp.tracing.exit_heads`), all of an
    exit's applied at once. Exact and approximate is what is with `Propagate`; a state that is mapped lies
    nearer to what the layer would have been given. A recurrent layer runs on its mapped state.
    """

    name: ClassVar[str] = "mapped"
    exact: ClassVar[str] = (
        "Exits give their own outputs exactly; deeper layers of later tokens see K and V projected from what "
        "fitted maps make of the exit's hidden state, an approximation."
    )

    @classmethod
    def check(cls, request: Request) -> None:
        """Raise InputError for maps that are missing or another model's, PolicyError for exits without."""
        check_maps(request.options.policy, request.options.heads, request.layers, request.dtype)

    def given(self, exit: int, hidden: Tensor) -> States:
        """What the layers after an exit are given where all rows left, with states [batch, 1, hidden]."""
        return map_states(self.work, exit, hidden)

    def left_states(self, hidden: Tensor) -> LeftStates:
        """The same where rows leave one by one. hidden: before the first layer [batch, 1, hidden]."""
        return MappedStates(self.work, hidden)


class MappedStates(LeftStates):
    """What rows that have left give each layer that they skip, mapped when they leave."""

    def __init__(self, work: Work, hidden: Tensor) -> None:
        self._work = work
        self._given = hidden.expand(work.engine.layers, *hidden.shape).clone()

    def leave(self, exit: int, rows: Tensor, hidden: Tensor) -> None:
        """Some rows leave, int64 [rows], with their states there [rows, 1, hidden]."""
        self._given[exit:, rows] = torch.stack(map_states(self._work, exit, hidden))

    def given(self, first: int, last: int, rows: Tensor | None = None) -> States:
        """What some rows, int64 [rows], or all of them give layers first+1..last."""
        given = self._given[first:last]
        return (given if rows is None else given[:, rows]).unbind()


def map_states(work: Work, exit: int, hidden: Tensor) -> list[Tensor]:
    """What layers exit + 1..L are given [rows, 1, hidden] each, charged where a map is applied."""
    layers, maps = work.engine.layers, work.maps
    assert maps is not None, "checked before anything ran"
    if exit < layers - 1:
        work.meter.count("K,V map", exit, len(hidden))
    given = maps.inputs_after(exit, hidden)
    work.meter.lap("K,V repair")
    return given
