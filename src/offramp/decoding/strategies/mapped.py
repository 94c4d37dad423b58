"""`mapped`: skipped layers are given the exit's state through an affine map each."""

from __future__ import annotations

import torch
from torch import Tensor

from offramp.decoding.engine.sequences import States
from offramp.decoding.options import check_maps
from offramp.decoding.strategies.propagate import LeftStates, Propagate
from offramp.decoding.strategies.strategy import Conditions, Gear
from offramp.heads.exit_heads import ExitHeads, KeyValueMaps
from offramp.heads.parts import ExitMaps
from offramp.policies.kv import MAPPED


class Mapped(Propagate, of=MAPPED):
    """As `Propagate`, but each skipped layer is given the exit's state through an affine map of its own.

    The maps are ridge regressions of the deeper layers' outputs (`offramp.heads.exit_heads`), all of an
    exit's applied at once. Exact and approximate is what is with `Propagate`; a state that is mapped lies
    nearer to what the layer would have been given. A recurrent layer runs on its mapped state.
    """

    def __init__(self, gear: Gear) -> None:
        super().__init__(gear)
        self._maps = StateMaps.of(gear.options.heads, gear.engine.layers, gear.engine.stack.device)

    @classmethod
    def check(cls, conditions: Conditions) -> None:
        """Raise InputError for maps that are missing or another model's, PolicyError for exits without."""
        check_maps(conditions.options.policy, conditions.options.heads, conditions.layers, conditions.dtype)

    def given(self, exit: int, hidden: Tensor) -> list[Tensor]:
        """What layers exit + 1..L are given [rows, 1, hidden] each, charged where a map is applied."""
        assert self._maps is not None, "checked before anything ran"
        if exit < self.gear.engine.layers - 1:
            self.gear.meter.count("K,V map", exit, len(hidden))
        states = self._maps.inputs_after(exit, hidden)
        self.gear.meter.lap("K,V repair")
        return states

    def left_states(self, hidden: Tensor) -> LeftStates:
        """The same where rows leave one by one. hidden: before the first layer [batch, 1, hidden]."""
        return MappedStates(self, hidden)


class MappedStates(LeftStates):
    """What rows that have left give each layer that they skip, mapped when they leave."""

    def __init__(self, strategy: Mapped, hidden: Tensor) -> None:
        self._strategy = strategy
        self._given = hidden.expand(strategy.gear.engine.layers, *hidden.shape).clone()

    def leave(self, exit: int, rows: Tensor, hidden: Tensor) -> None:
        """Some rows leave, int64 [rows], with their states there [rows, 1, hidden]."""
        self._given[exit:, rows] = torch.stack(self._strategy.given(exit, hidden))

    def given(self, first: int, last: int, rows: Tensor | None = None) -> States:
        """What some rows, int64 [rows], or all of them give layers first+1..last."""
        states = self._given[first:last]
        return (states if rows is None else states[:, rows]).unbind()


class StateMaps:
    """What the layers after an exit are given by tokens that left there, through the maps of some heads.

    layers: L. An exit's maps are brought to the device when they are first used.
    """

    def __init__(self, maps: KeyValueMaps, layers: int, device: torch.device) -> None:
        self.layers = layers
        self._maps = maps
        self._device = device
        self._prepared: dict[int, ExitMaps[Tensor]] = {}

    @classmethod
    def of(cls, heads: ExitHeads | None, layers: int, device: torch.device) -> StateMaps | None:
        """Those of some heads; None without maps."""
        return None if heads is None or heads.kv_maps is None else cls(heads.kv_maps, layers, device)

    @torch.no_grad()
    def inputs_after(self, exit: int, hidden: Tensor) -> list[Tensor]:
        """What layers exit + 1..L are given: L - exit tensors of the shape of hidden, itself the first.

        hidden: states [..., hidden] after layer `exit`, in any dtype: maps are applied in float32. Raises
        KeyError for an exit without maps, of which `KeyValueMaps.missing` tells before.
        """
        if exit >= self.layers - 1:
            return [hidden] * (self.layers - exit)
        if exit not in self._prepared:
            self._prepared[exit] = self._maps.maps[exit].on(self._device)
        rows = hidden.reshape(-1, hidden.shape[-1]).float()
        deeper = self._prepared[exit](rows)
        return [hidden, *(state.to(hidden.dtype).view(hidden.shape) for state in deeper)]
