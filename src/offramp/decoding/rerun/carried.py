"""States of tokens that have left, carried past the layers they skip, whose K and V are made from them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

InputsAfter = Callable[[int, Tensor], list[Tensor]]
"""From an exit and states that left there [rows, 1, hidden] to what layers exit+1..L are given, in order."""


@dataclass(frozen=True)
class _Left:
    places: Tensor
    exit: int
    inputs: list[Tensor]


class Carried:
    """The tokens of one pass that have left, and the state with which each goes past every deeper layer.

    inputs_after: of the strategy for K and V.
    """

    def __init__(self, inputs_after: InputsAfter) -> None:
        self._inputs_after = inputs_after
        self._left: list[_Left] = []

    def leave(self, exit: int, places: Tensor, hidden: Tensor) -> None:
        """Tokens leave at an exit. places: int64 [rows], among all states. hidden: [rows, 1, hidden]."""
        inputs = [state[:, 0] for state in self._inputs_after(exit, hidden)]
        self._left.append(_Left(places, exit, inputs))

    def put_back(self, depth: int, hidden: Tensor) -> Tensor:
        """The states after `depth` layers [batch, positions, hidden], those of tokens that left in place."""
        if not self._left:
            return hidden
        flat = hidden.reshape(-1, hidden.shape[-1])
        for left in self._left:
            flat = flat.index_copy(0, left.places, left.inputs[depth - left.exit])
        return flat.view(hidden.shape)


def unchanged(layers: int) -> InputsAfter:
    """`propagate`: every skipped layer is given the state that left (CALM, arXiv 2207.07061, section 3.3)."""
    return lambda exit, hidden: [hidden] * (layers - exit)
