"""What a layer leaves in the cache for later tokens: found by running it on one token."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from offramp.decoding.engine.length_view import own_cache
from offramp.models.calls import first_tensor
from offramp.models.recording import LayerCall

# How layers write what grows by a position per token: K and V, and the keys of an index over them.
UPDATES = ("update", "update_indexer")


class Written(Exception):
    """Ends a layer that has written its K and V."""


@dataclass(frozen=True)
class KeptState:
    """What one layer leaves behind.

    entries: places in the cache's list of layers. recurrent: a tensor that is replaced rather than grown.
    updates: after how many updates of the cache all of it is written, 0 if only the whole layer does that.
    elsewhere: something is kept outside the cache's list, in the layer's modules, say. attends: whether it
    writes K and V at all.
    """

    entries: tuple[int, ...]
    recurrent: bool
    updates: int
    elsewhere: bool
    attends: bool


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
                raise Written
            return written

        return run

    names = [name for name in UPDATES if hasattr(cache, name)]
    cache.__dict__.update({name: noting(name) for name in names})
    try:
        yield noted
    except Written:
        pass
    finally:
        for name in names:
            del cache.__dict__[name]


def entries_of(cache: Any) -> list[Any]:
    """The cache's layers in order; empty for a cache of another make."""
    return list(getattr(own_cache(cache), "layers", []))


def find_kept_state(
    layer: nn.Module, call: LayerCall, cache: Any, hidden: Tensor
) -> tuple[KeptState, Tensor]:
    """Run a layer on one new token, and see what changes. Also returns the state after it.

    call: with the real cache in place, which moves on by this token.
    """
    copied = copy.deepcopy(cache)
    before = [_values(entry) for entry in entries_of(cache)]
    outside = _values_outside(layer, cache)
    arguments, keywords = call.arguments(hidden)
    with counting_updates(cache) as noted:
        output = first_tensor(layer(*arguments, **keywords))
    after = [_values(entry) for entry in entries_of(cache)]
    entries = tuple(
        place for place, values in enumerate(after) if place >= len(before) or _differ(before[place], values)
    )
    recurrent = any(_is_replaced(before[place], after[place]) for place in entries if place < len(before))
    written = bool(noted) and not recurrent and _writes_all(len(noted), layer, call, cache, copied, hidden)
    elsewhere = _differ(outside, _values_outside(layer, cache))
    return KeptState(entries, recurrent, len(noted) if written else 0, elsewhere, bool(noted)), output


def _writes_all(
    updates: int, layer: nn.Module, call: LayerCall, cache: Any, copied: Any, hidden: Tensor
) -> bool:
    """Whether the layer, stopped after its last update, leaves the copy like the cache itself."""
    arguments, keywords = call.with_cache(cache, copied).arguments(hidden)
    with counting_updates(copied, stop_after=updates):
        layer.forward(*arguments, **keywords)
    pairs = zip(entries_of(cache), entries_of(copied), strict=True)
    return not any(_differ(_values(ours), _values(theirs)) for ours, theirs in pairs)


def _values(entry: Any) -> dict[str, Any]:
    """What a cache's layer holds: copies of its tensors, and its numbers, by place."""
    found: dict[str, Any] = {}
    _collect(vars(entry), "", found)
    return found


def _collect(value: Any, place: str, found: dict[str, Any]) -> None:
    if isinstance(value, Tensor):
        found[place] = value.clone()
    elif isinstance(value, int):
        found[place] = value
    elif isinstance(value, dict):
        for name, item in value.items():
            _collect(item, f"{place}.{name}", found)
    elif isinstance(value, (tuple, list)):
        for number, item in enumerate(value):
            _collect(item, f"{place}.{number}", found)


def _values_outside(layer: nn.Module, cache: Any) -> dict[str, Any]:
    """What the cache holds outside its list of layers, and tensors that are attributes of a layer's modules,
    no parameters and no buffers."""
    found: dict[str, Any] = {}
    _collect({name: value for name, value in vars(cache).items() if name != "layers"}, "cache", found)
    for number, module in enumerate(layer.modules()):
        own = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
        _collect(own, str(number), found)
    return found


def _differ(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> bool:
    return ours.keys() != theirs.keys() or any(not _same(ours[place], theirs[place]) for place in ours)


def _same(ours: Any, theirs: Any) -> bool:
    if isinstance(ours, Tensor) and isinstance(theirs, Tensor):
        return torch.equal(ours, theirs)
    return bool(ours == theirs) if type(ours) is type(theirs) else False


def _is_replaced(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    """Whether a tensor has other values in its old shape: a state, where K and V would have grown.

    K and V themselves keep their shape in a full sliding window.
    """
    for place, value in after.items():
        if isinstance(value, Tensor) and value.is_floating_point() and place not in (".keys", ".values"):
            old = before.get(place)
            if isinstance(old, Tensor) and old.shape == value.shape and not torch.equal(old, value):
                return True
    return False
