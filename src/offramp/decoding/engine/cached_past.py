"""Going back in a cache: snapshots of some of its layers, and removing their last positions."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from offramp.decoding.engine.kept_state import entries_of


@dataclass(frozen=True)
class Past:
    """What some layers held at one moment.

    entries: place in the cache's list and what its layer held. first: the first of the model's layers.
    lengths: positions that each of them held.
    """

    entries: tuple[tuple[int, dict[str, Any]], ...]
    first: int
    lengths: tuple[int, ...]


def snapshot(cache: Any, entries: Sequence[int], first: int, lengths: Sequence[int]) -> Past:
    """What some places of the cache's list hold.

    K and V are replaced by longer tensors and never written to, so that they need no copy; all else, such as
    recurrent states, is copied.
    """
    held = entries_of(cache)
    return Past(tuple((place, _held(vars(held[place]))) for place in entries), first, tuple(lengths))


def restore(cache: Any, past: Past) -> None:
    """Put back what was held; the snapshot stays as it is."""
    entries = entries_of(cache)
    for place, held in past.entries:
        own = vars(entries[place])
        own.clear()
        own.update(_held(held))


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
