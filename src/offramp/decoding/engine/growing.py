"""K and V that grow in place: buffers with room for later positions, of which layers see what is used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers.cache_utils import DynamicLayer

from offramp.decoding.engine.cache import InPlace, own_cache

LEAST_ROOM = 64
SHARE_OF_ROOM = 8
"""A full buffer grows by an eighth: a position is copied eight times in all, not once a token, and at most an
eighth of the memory lies idle."""


@dataclass
class Room:
    """The buffers that K and V lie in, [batch, heads, capacity, features] each."""

    keys: Tensor
    values: Tensor

    def holds(self, keys: Tensor, values: Tensor, new: int) -> bool:
        """Whether these are the buffers' first positions, with room for `new` more."""
        return _starts(self.keys, keys, new) and _starts(self.values, values, new)


def _starts(buffer: Tensor, held: Tensor, new: int) -> bool:
    return (
        held.data_ptr() == buffer.data_ptr()
        and held.stride() == buffer.stride()
        and held.shape[:-2] == buffer.shape[:-2]
        and held.shape[-2] + new <= buffer.shape[-2]
    )


class GrowingLayer(InPlace, DynamicLayer):  # type: ignore[no-untyped-call]
    """A layer of transformers' cache whose update writes the new positions behind those it holds.

    Transformers' own makes K and V anew for every token (`torch.cat`), which reads and writes all of them.
    `keys` and `values` are views of what is used, so that nothing else sees a difference; whoever replaces
    them (rows that are chosen, say) gets new buffers at the next update.
    """

    def __init__(self, **keywords: Any) -> None:
        super().__init__(**keywords)  # type: ignore[no-untyped-call]
        self.room: Room | None = None
        self.kept = 0

    def keep(self) -> None:
        """Later updates leave what is held now."""
        self.kept = max(self.kept, self.get_seq_length())

    def release(self) -> None:
        """The next update makes new buffers."""
        self.room = None
        self.kept = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *arguments: Any, **keywords: Any
    ) -> tuple[Tensor, Tensor]:
        """K and V of all positions, after those of new ones: [batch, heads, new, features] each."""
        held, new = self.get_seq_length(), key_states.shape[-2]
        keys, values = self.keys, self.values
        if keys is None or values is None or not _follow(keys, values, key_states, value_states):
            # A prompt alone, which many callers never go on from, needs no room.
            return super().update(key_states, value_states, *arguments, **keywords)
        room = self.room
        if room is None or held < self.kept or not room.holds(keys, values, new):
            capacity = held + new + max(LEAST_ROOM, held // SHARE_OF_ROOM)
            room = self.room = Room(_with_room(keys, capacity), _with_room(values, capacity))
            self.kept = 0
        room.keys.narrow(-2, held, new).copy_(key_states)
        room.values.narrow(-2, held, new).copy_(value_states)
        self.keys = room.keys.narrow(-2, 0, held + new)
        self.values = room.values.narrow(-2, 0, held + new)
        return self.keys, self.values


def _follow(keys: Tensor, values: Tensor, new_keys: Tensor, new_values: Tensor) -> bool:
    """Whether new positions can stand behind those held as they are, if any are held."""
    shapes = keys.shape[:-2] == new_keys.shape[:-2] and values.shape[:-2] == new_values.shape[:-2]
    return shapes and keys.dtype == new_keys.dtype and values.dtype == new_values.dtype


def _with_room(held: Tensor, capacity: int) -> Tensor:
    buffer = held.new_empty((*held.shape[:-2], capacity, held.shape[-1]))
    buffer[..., : held.shape[-2], :] = held
    return buffer


def grow_in_place(cache: Any) -> None:
    """Let the layers of a new cache grow in place that keep K and V of every position; others stay.

    Only transformers' own class of such layers: what another one keeps beside K and V is not known.
    """
    cache = own_cache(cache)
    if getattr(cache, "layer_class_to_replicate", None) is DynamicLayer:
        cache.layer_class_to_replicate = GrowingLayer
    for place, entry in enumerate(getattr(cache, "layers", [])):
        if type(entry) is DynamicLayer:
            grown = GrowingLayer()
            vars(grown).update(vars(entry))
            cache.layers[place] = grown
