"""Looking into a transformers cache, whatever its class: the tensors it holds and the windows it slides."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn


def held_tensors(layer: nn.Module, arguments: Any) -> list[Tensor]:
    """The floating-point tensors that a layer can keep between calls.

    They lie in a cache among its arguments, or are attributes of its modules (no parameters, no buffers).
    """
    seen: set[int] = set()
    held = [tensor for cache in caches_among(arguments) for tensor in _walk(cache, seen)]
    for module in layer.modules():
        held += [value for value in vars(module).values() if _is_floating(value) and id(value) not in seen]
    return held


def caches_among(values: Any) -> list[Any]:
    """The cache objects among a layer's arguments."""
    found = []
    for value in values:
        if isinstance(value, (tuple, list)):
            found += caches_among(value)
        elif isinstance(value, dict):
            found += caches_among(value.values())
        elif is_cache(value):
            found.append(value)
    return found


def is_cache(value: Any) -> bool:
    """Whether an object is a cache: of a class, or a parent class, whose name holds "Cache"."""
    return any("Cache" in parent.__name__ for parent in type(value).__mro__)


def sliding_window(arguments: Any, written: list[Tensor]) -> int | None:
    """The window of the cache's layer that holds one of the `written` tensors, None if it does not slide."""
    ids = {id(tensor) for tensor in written}
    for cache in caches_among(arguments):
        for layer in getattr(cache, "layers", []):
            window = getattr(layer, "sliding_window", None)
            if not isinstance(window, int) or not getattr(layer, "is_sliding", False):
                continue
            if ids & {id(tensor) for tensor in _walk(layer, set())}:
                return window
    return None


def _is_floating(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point()


def _walk(value: Any, seen: set[int]) -> Iterator[Tensor]:
    if id(value) in seen:
        return
    seen.add(id(value))
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _walk(item, seen)
    elif isinstance(value, (tuple, list)):
        for item in value:
            yield from _walk(item, seen)
    elif is_cache(value):
        yield from _walk(vars(value), seen)
