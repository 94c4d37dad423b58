"""A cache seen as if it held another number of tokens, so that a model builds masks for any position."""

from __future__ import annotations

import functools
from collections.abc import Hashable
from typing import Any, cast


def own_cache(cache: Any) -> Any:
    """The cache of a decoder's own tokens, which some families keep beside one of an encoder's."""
    return getattr(cache, "self_attention_cache", cache)


def at_length(cache: Any, length: int) -> Any:
    """The cache with the same layers, which claims to hold `length` tokens."""
    view: Any = object.__new__(_view_class(cast("Hashable", type(cache))))
    view.__dict__.update(cache.__dict__)
    view.__dict__["seen"] = length
    return view


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
