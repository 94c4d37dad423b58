"""A cache whose next update serves only some rows of a batch, the other rows' K and V being known."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from offramp.decoding.engine.kept_state import Written
from offramp.decoding.engine.length_view import own_cache

KeysAndValues = list[Tensor]


@contextmanager
def kept_aside(cache: Any) -> Iterator[KeysAndValues]:
    """Within it, a layer ends at its update of the cache, which is not done: its K and V are handed over."""
    written: KeysAndValues = []
    cache = own_cache(cache)

    def keep(keys: Tensor, values: Tensor, *arguments: Any, **keywords: Any) -> Any:
        written.extend((keys, values))
        raise Written

    cache.__dict__["update"] = keep
    try:
        yield written
    except Written:
        pass
    finally:
        del cache.__dict__["update"]


@contextmanager
def merging(cache: Any, others: KeysAndValues | None, order: Tensor, rows: Tensor) -> Iterator[None]:
    """Within it, a layer that runs for some rows updates the cache for all.

    others: the other rows' K and V, None for a layer that writes none. order: where in (rows, others) each
    row of the batch lies. rows: those that the layer runs for; it gets their K and V only.
    """
    if others is None:
        yield
        return
    cache = own_cache(cache)
    update = cache.update

    def update_all(keys: Tensor, values: Tensor, *arguments: Any, **keywords: Any) -> Any:
        every = [
            torch.cat([ours, theirs])[order] for ours, theirs in zip((keys, values), others, strict=True)
        ]
        return tuple(held[rows] for held in update(*every, *arguments, **keywords))

    cache.__dict__["update"] = update_all
    try:
        yield
    finally:
        del cache.__dict__["update"]
