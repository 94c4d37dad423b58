"""The engine: what is known of a model that is driven layer by layer, the same for every generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from offramp.decoding.engine.abilities import Abilities
from offramp.decoding.engine.products import head_logits
from offramp.models.stack import ExitStack


@dataclass(frozen=True)
class Engine:
    """A model ready to be driven layer by layer (see `offramp.decoding.engine.build.engine_of`).

    cache_name: under which the model takes a cache. takes_positions: whether it takes `position_ids`.
    masks_steps: whether it takes the attention mask after the prompt too: a model without attention does not.
    recurrent: bool per layer, whether it keeps a state that only moves by running it. updates: per layer,
    after how many updates of the cache all that it leaves behind is written, so that it can stop there (0 if
    it cannot). keeps: bool per layer, whether it leaves anything behind: a layer that attends to another
    layer's K and V does not. transposed: whether the output head's product is faster with the weights on the
    left (`offramp.decoding.engine.products`). entries: per layer, the places in the cache's list that it
    writes to. abilities: what the family can do, and why not.
    """

    stack: ExitStack
    cache_name: str
    takes_positions: bool
    masks_steps: bool
    recurrent: tuple[bool, ...]
    updates: tuple[int, ...]
    keeps: tuple[bool, ...]
    entries: tuple[tuple[int, ...], ...]
    abilities: Abilities
    transposed: bool = False

    @property
    def layers(self) -> int:
        """L, the number of layers and of exits."""
        return len(self.stack)

    @property
    def dtype(self) -> str:
        """Of the weights, as `offramp.models.model.Model.dtype` says it."""
        return str(next(self.hf.parameters()).dtype).removeprefix("torch.")

    def logits(self, hidden: Tensor) -> Tensor:
        """The full model's logits of states after layer L: [rows, n, hidden] -> [rows, n, vocabulary]."""
        if self.transposed:
            return head_logits(self.stack, self.stack.tail_forward(hidden), True)
        return self.stack.readout(hidden)

    @property
    def hf(self) -> Any:
        """transformers' model."""
        return self.stack.hf
