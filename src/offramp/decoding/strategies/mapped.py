"""K and V of skipped layers are projected from what fitted maps say that the layers would have been given."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from offramp.decoding.engine.sequences import States
from offramp.decoding.strategies.propagate import Propagate
from offramp.decoding.strategies.rebatch import LeftStates
from offramp.decoding.strategies.strategy import Request, Work
from offramp.errors import InputError, PolicyError
from offramp.policies.policy import ExitPolicy
from offramp.tracing.exit_heads import ExitHeads

FIT_MAPS = "offramp heads fit MODEL --workload W --kv-maps {} --no-lens --no-classifiers -o FILE"
"""The command that fits maps alone, by their exits."""


class Mapped(Propagate):
    """As `Propagate`, but each skipped layer is given the exit's state through an affine map of its own.

    The maps are ridge regressions of the deeper layers' outputs (`offramp.tracing.key_value_maps`), all of an
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
        check_maps(request.policy, request.heads, request.layers, request.dtype)

    def given(self, exit: int, hidden: Tensor) -> States:
        """What the layers after an exit are given where all rows left, with states [batch, 1, hidden]."""
        return map_states(self.work, exit, hidden)

    def left_states(self, hidden: Tensor) -> LeftStates:
        """The same where rows leave one by one. hidden: before the first layer [batch, 1, hidden]."""
        return MappedStates(self.work, hidden)


def check_maps(
    policy: ExitPolicy, heads: ExitHeads | None, layers: int | None = None, dtype: str | None = None
) -> None:
    """Refuse to map K and V where the heads have no maps, or not from every exit of a policy.

    layers, dtype: of the model, where it is known, else those that the maps are of.

    Raises InputError for maps that are missing or another model's, PolicyError for exits without.
    """
    if heads is not None:
        layers = int(heads.model["layers"]) if layers is None else layers
    exits = [] if layers is None else sorted(exit for exit in policy.needs(layers) if exit < layers - 1)
    fix = FIT_MAPS.format(",".join(map(str, exits)) or "EXITS")
    if heads is None or heads.kv_maps is None:
        raise InputError(
            "K and V cannot be mapped: there are no K,V maps"
            + ("" if heads is None else " in these exit heads"),
            where='kv "mapped"',
            fix=f"fit them and give the file (--heads FILE): {fix}",
        )
    for what, value in {"layers": layers, "dtype": dtype}.items():
        if value is not None and heads.model[what] != value:
            raise InputError(
                f"the K,V maps are of a model with {what} {heads.model[what]}, this one has {value}",
                where='kv "mapped"',
                fix=f"fit maps of this model: {fix}",
            )
    missing = heads.kv_maps.missing(exits, int(heads.model["layers"]))
    if missing:
        raise PolicyError(
            f"{policy} leaves at exit {missing[0]}, which has no K,V maps; they start at: "
            + ", ".join(map(str, heads.kv_maps.exits)),
            where='kv "mapped"',
            fix=f"choose a policy whose exits are among these, or fit maps of its exits: {fix}",
        )


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
