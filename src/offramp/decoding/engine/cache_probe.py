"""What a layer leaves in the cache: found by running it on a token; and stopped, or shared by rows, there."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from offramp.decoding.engine.truncated_cache import entries_of, own_cache
from offramp.errors import ModelError
from offramp.models.calls import LayerCall, first_tensor, is_cache
from offramp.models.discovery import UNFIT_ERRORS, probe_ids
from offramp.models.model import Model
from offramp.models.tensors import largest_difference, largest_finite

CHECKED_TOKENS = 7
# Of the largest logit. Wide: a cache that is not read at all is what must be found.
TOLERANCE = {"float32": 1e-2, "bfloat16": 5e-2}


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


def cache_keyword(model: Model) -> str:
    """Under which name a model takes a cache and returns it (see `find_cache_keyword`)."""
    return find_cache_keyword(
        model.hf, name=model.name, dtype=model.dtype, context_length=model.context_length
    )


def find_cache_keyword(hf: Any, *, name: str, dtype: str, context_length: int | None = None) -> str:
    """Under which name a transformers model takes a cache and returns it, found by decoding a token with one.

    Raises ModelError if the model keeps no cache, or if a token decoded with it gives other logits than the
    whole sequence does.
    """
    length = min(CHECKED_TOKENS, context_length or CHECKED_TOKENS)
    ids = probe_ids(hf, length)
    places: dict[str, Tensor] = {}
    if "position_ids" in inspect.signature(hf.forward).parameters:
        # As generate() does: some families count every block from 0 if they are not told.
        places["position_ids"] = torch.arange(length, device=ids.device)[None]
    prompt, last = (
        {"input_ids": ids[:, part], **{name: value[:, part] for name, value in places.items()}}
        for part in (slice(length - 1), slice(length - 1, length))
    )
    try:
        with torch.no_grad():
            whole = hf(input_ids=ids, use_cache=False, **places).logits[:, -1].float()
            output = hf(use_cache=True, **prompt)
            keyword = next((key for key, value in output.items() if is_cache(value)), None)
            if keyword is None:
                raise _no_cache(name, "it returns none")
            step = hf(use_cache=True, **last, **{keyword: output[keyword]})
    except UNFIT_ERRORS as error:
        raise _no_cache(name, f"{type(error).__name__}: {error}") from error
    difference = largest_difference(step.logits[:, -1], whole)
    if not difference <= TOLERANCE[dtype] * largest_finite(whole):
        raise _no_cache(name, f"its logits with a cache differ by {difference:.3g}")
    return str(keyword)


def _no_cache(name: str, why: str) -> ModelError:
    return ModelError(
        f"the model cannot decode token by token with a cache: {why}",
        where=name,
        fix="trace and replay it, and judge it on a roofline profile: offramp list hardware",
    )


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
