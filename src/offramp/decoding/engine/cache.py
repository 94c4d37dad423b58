"""Transformers' cache while layers run one by one: seen shorter, brought back, grown, shared by rows."""

from __future__ import annotations

import copy
import functools
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from offramp.models.calls import CROSS

OWN = "self_attention_cache"
"""Where a cache of two keeps that of the decoder's own tokens, beside the encoder's (`calls.CROSS`)."""


def own_cache(cache: Any) -> Any:
    """The cache of a decoder's own tokens, which some families keep beside one of an encoder's."""
    return getattr(cache, OWN, cache)


def entries_of(cache: Any) -> list[Any]:
    """The cache's layers in order; empty for a cache of another make."""
    return list(getattr(own_cache(cache), "layers", []))


def at_length(cache: Any, length: int) -> Any:
    """The cache with the same layers, which claims to hold `length` tokens."""
    view: Any = object.__new__(_view_class(cast("Hashable", type(cache))))
    view.__dict__.update(cache.__dict__)
    view.__dict__["seen"] = length
    if OWN in view.__dict__:  # whose length masks are made of
        view.__dict__[OWN] = at_length(view.__dict__[OWN], length)
    return view


def copied_to(cache: Any, length: int, rows: Tensor | None = None) -> Any:
    """A cache of its own whose first layer holds the first positions of this one's; what that layer writes to
    it stays there. rows: of the batch, None for all.
    """
    own = copy.copy(cache)
    for name, value in vars(cache).items():
        if isinstance(value, dict):
            vars(own)[name] = dict(value)
        elif name in (OWN, CROSS):
            vars(own)[name] = copied_to(value, length if name == OWN else sys.maxsize, rows)
        elif name == "layers" and value:
            first = copy.copy(value[0])
            if isinstance(first, GrowingLayer):
                first.release()
            for part in ("keys", "values"):
                if isinstance(held := getattr(first, part, None), Tensor) and held.numel():
                    held = held[..., :length, :]
                    setattr(first, part, held if rows is None else held[rows])
            own.layers = [first, *value[1:]]
    return own


@functools.cache
def _view_class(kind: Hashable) -> type:
    methods = {"get_seq_length": _length, "get_query_offset": _length, "get_mask_sizes": _mask_sizes}
    return type("LengthView", (cast("type", kind),), methods)


def _length(view: Any, layer_idx: int = 0) -> int:
    return int(view.seen)


def _mask_sizes(view: Any, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
    """Length and offset of the keys that a layer will attend to: all, or a window's rest and the new ones."""
    seen = int(view.seen)
    layers = own_cache(view).layers
    window = getattr(layers[layer_idx], "sliding_window", None) if layer_idx < len(layers) else None
    if window is None:
        return seen + query_length, 0
    return min(window - 1, seen) + query_length, max(seen - window + 1, 0)


@dataclass(frozen=True)
class Past:
    """What some layers held at one moment."""

    entries: tuple[tuple[int, dict[str, Any]], ...]
    """Place in the cache's list and what its layer held."""
    first: int
    """The first of the model's layers."""
    lengths: tuple[int, ...]
    """Positions that each of them held."""


def snapshot(cache: Any, entries: Sequence[int], first: int, lengths: Sequence[int]) -> Past:
    """What some places of the cache's list hold.

    K and V need no copy: they are replaced by longer tensors, or grow in place behind the positions that are
    held now (`GrowingLayer`), which are never written to again. All else, such as
    recurrent states, is copied.
    """
    held = entries_of(cache)
    for place in entries:
        entry = held[place]
        if isinstance(entry, GrowingLayer):
            entry.keep()
    return Past(tuple((place, _held(vars(held[place]))) for place in entries), first, tuple(lengths))


def restore(cache: Any, past: Past) -> None:
    """Put back what was held; the snapshot stays as it is."""
    entries = entries_of(cache)
    for place, held in past.entries:
        entry = entries[place]
        values = vars(entry)
        values.clear()
        values.update(_held(held))
        if isinstance(entry, GrowingLayer):
            entry.release()


def _held(values: dict[str, Any]) -> dict[str, Any]:
    return {name: value if name in ("keys", "values") else _copied(value) for name, value in values.items()}


def _copied(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, dict):
        return {name: _copied(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_copied(item) for item in value)
    return copy.copy(value)


def record_past(cache: Any) -> None:
    """Sliding windows keep what slides out of them until they are cropped."""
    for entry in entries_of(cache):
        if hasattr(entry, "activate_past_recording") and not hasattr(entry, "recurrent_states"):
            entry.activate_past_recording()


def crop(cache: Any, entries: Sequence[int], positions: int) -> None:
    """Remove the last positions of some places; sliding windows also forget what they kept for this."""
    held = entries_of(cache)
    for place in entries:
        entry = held[place]
        if positions or getattr(entry, "record_past", False):
            entry.crop(-positions)


# How layers write what grows by a position per token: K and V, and the keys of an index over them.
UPDATES = ("update", "update_indexer")


class CacheWritten(Exception):
    """Ends a layer that has written its K and V."""


@contextmanager
def _replaced(cache: Any, methods: Mapping[str, Callable[..., Any]]) -> Iterator[None]:
    """Within it, a cache has other methods; a layer that one of them stops has ended."""
    vars(cache).update(methods)
    try:
        yield
    except CacheWritten:
        pass
    finally:
        for name in methods:
            del vars(cache)[name]


@contextmanager
def counting_updates(cache: Any, stop_after: int | None = None) -> Iterator[list[str]]:
    """Within it, the updates of a cache are noted; a layer ends after `stop_after` of them."""
    noted: list[str] = []
    cache = own_cache(cache)

    def noting(name: str) -> Callable[..., Any]:
        update = getattr(cache, name)

        def run(*arguments: Any, **keywords: Any) -> Any:
            written = update(*arguments, **keywords)
            noted.append(name)
            if len(noted) == stop_after:
                raise CacheWritten
            return written

        return run

    with _replaced(cache, {name: noting(name) for name in UPDATES if hasattr(cache, name)}):
        yield noted


KeysAndValues = list[Tensor]


@contextmanager
def kept_aside(cache: Any) -> Iterator[KeysAndValues]:
    """Within it, a layer ends at its update of the cache, which is not done: its K and V are handed over."""
    written: KeysAndValues = []

    def keep(keys: Tensor, values: Tensor, *arguments: Any, **keywords: Any) -> Any:
        written.extend((keys, values))
        raise CacheWritten

    with _replaced(own_cache(cache), {"update": keep}):
        yield written


@contextmanager
def merging(
    cache: Any, others: KeysAndValues | None, order: Tensor, rows: Tensor, layer: int
) -> Iterator[None]:
    """Within it, a layer that runs for some rows updates the cache for all.

    others: the other rows' K and V, None for a layer that writes none. order: where in (rows, others) each
    row of the batch lies. rows: those that the layer, counted from 0, runs for; it gets their K and V only,
    and those of what their encoder read.
    """
    if others is None:
        yield
        return
    crossed = getattr(getattr(cache, CROSS, None), "layers", ())[layer : layer + 1]
    cache = own_cache(cache)
    update = cache.update

    def update_all(keys: Tensor, values: Tensor, *arguments: Any, **keywords: Any) -> Any:
        every = [
            torch.cat([ours, theirs])[order] for ours, theirs in zip((keys, values), others, strict=True)
        ]
        return tuple(held[rows] for held in update(*every, *arguments, **keywords))

    # Some keep room for an encoder's that they have not.
    whole = [(entry, entry.keys, entry.values) for entry in crossed if entry.keys is not None]
    try:
        for entry, keys, values in whole:
            entry.keys, entry.values = keys[rows], values[rows]
        with _replaced(cache, {"update": update_all}):
            yield
    finally:
        for entry, keys, values in whole:
            entry.keys, entry.values = keys, values


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


class GrowingLayer(DynamicLayer):  # type: ignore[no-untyped-call]
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
        """What is held now may be asked for again: later updates leave these positions as they are."""
        self.kept = max(self.kept, self.get_seq_length())

    def release(self) -> None:
        """Others may write to the buffers: the next update makes new ones."""
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
