"""From a model to its engine: how it caches, and what each layer leaves there, measured once per model."""

from __future__ import annotations

import copy
import dataclasses
import inspect
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from offramp.decoding.engine.cache import counting_updates, entries_of
from offramp.decoding.engine.capability_tests import own_logits, try_ability
from offramp.decoding.engine.engine import Abilities, Drive, Engine, KeptState, Meter
from offramp.decoding.engine.products import few_rows_are_faster, transposed_is_faster, wide_linears
from offramp.decoding.engine.sequences import Sequences
from offramp.errors import ModelError, raise_if_out_of_memory
from offramp.models.calls import UNFIT_ERRORS, LayerCall, first_tensor, is_cache
from offramp.models.conditioned import probing
from offramp.models.discovery import find_stack, probe_ids
from offramp.models.model import Model, alone_with
from offramp.models.stack import ExitStack
from offramp.models.tensors import largest_difference, largest_finite, precision_of

CHECKED_TOKENS = 7
# Of the largest logit. Wide: a cache that is not read at all is what must be found.
CACHED_TOLERANCE = {"float32": 1e-2, "bfloat16": 5e-2, "float16": 2e-2}


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
    values: dict[str, Any] = {}
    _collect(vars(entry), "", values)
    return values


def _collect(value: Any, place: str, values: dict[str, Any]) -> None:
    if isinstance(value, Tensor):
        values[place] = value.clone()
    elif isinstance(value, int):
        values[place] = value
    elif isinstance(value, dict):
        for name, item in value.items():
            _collect(item, f"{place}.{name}", values)
    elif isinstance(value, (tuple, list)):
        for number, item in enumerate(value):
            _collect(item, f"{place}.{number}", values)


def _values_outside(layer: nn.Module, cache: Any) -> dict[str, Any]:
    """What the cache holds outside its list of layers, and tensors that are attributes of a layer's modules,
    no parameters and no buffers."""
    values: dict[str, Any] = {}
    _collect({name: value for name, value in vars(cache).items() if name != "layers"}, "cache", values)
    for number, module in enumerate(layer.modules()):
        tensors = {name: value for name, value in vars(module).items() if isinstance(value, Tensor)}
        _collect(tensors, str(number), values)
    return values


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
    with probing(model.hf):
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
    if not difference <= CACHED_TOLERANCE[dtype] * largest_finite(whole):
        raise _no_cache(name, f"its logits with a cache differ by {difference:.3g}")
    return str(keyword)


def _no_cache(name: str, why: str) -> ModelError:
    return ModelError(
        f"the model cannot decode token by token with a cache: {why}",
        where=name,
        fix="trace and replay it, and judge it on a roofline profile: offramp list hardware",
    )


PROMPT = 6
# Of the largest logit, our loop against the model's own forward with a cache.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2.0**-6, torch.float16: 2.0**-9}


@dataclass(frozen=True, kw_only=True)
class _Known(Drive):
    """What is kept of a model between its engines; nothing in it may keep the model alive."""

    stack: ExitStack | None
    dtype: torch.dtype
    few_rows: bool = False
    answers: dict[str, str | None] = field(default_factory=dict)
    transforms: tuple[str, ...] = ()


TRIED = 3
"""Layers whose products are tried: more than a processor's caches hold, of a model that is worth it."""

_known: weakref.WeakKeyDictionary[Any, _Known] = weakref.WeakKeyDictionary()


def engine_of(model: Model | Any) -> Engine:
    """The engine of an offramp model or of a bare transformers model, which must be in eval mode.

    What is found out about a model is kept as long as the model lives and keeps its dtype and transforms.

    Raises ModelError if the model cannot be driven layer by layer, with the reason; it can still be traced.
    """
    if isinstance(model, Model):
        model.require_loaded("decoding")
    hf = model.hf if isinstance(model, Model) else model
    name = model.name if isinstance(model, Model) else type(hf).__name__
    dtype = next(hf.parameters()).dtype
    _check_ready(hf, dtype, name)
    with alone_with(hf):
        known = _known.get(hf)
        transforms = model.transforms if isinstance(model, Model) else ()
        changed = isinstance(model, Model) and known is not None and known.transforms != transforms
        if known is not None and (known.dtype != dtype or changed):
            known = None
        stack = model.stack if isinstance(model, Model) else None
        if stack is None and known is not None and known.stack is not None:
            stack = dataclasses.replace(known.stack, hf=hf)
        if stack is None:
            stack = find_stack(hf, name=name)
        if known is None:
            with probing(hf):
                known = _known[hf] = dataclasses.replace(_find_out(stack, name), transforms=transforms)
    return _engine(stack, known)


def _check_ready(hf: Any, dtype: torch.dtype, name: str) -> None:
    if hf.training:
        raise ModelError("the model is in training mode", where=name, fix="call its eval() first")
    devices = sorted({str(weight.device) for weight in hf.parameters()})
    if len(devices) > 1:
        raise ModelError(
            f"the model is spread over {', '.join(devices)}, and decoding drives the layers of one device",
            where=name,
            fix="put it on one device to decode; traces, scores and replays take it as it is",
        )
    if dtype not in TOLERANCE:
        raise ModelError(
            f"the model's weights are {str(dtype).removeprefix('torch.')}",
            where=name,
            fix="load it in float32, bfloat16 or float16",
        )


def _engine(stack: ExitStack, known: _Known) -> Engine:
    abilities = Abilities(lambda ability: try_ability(engine, ability), known.answers)
    engine = Engine(
        stack=stack,
        cache_name=known.cache_name,
        takes_positions=known.takes_positions,
        kept=known.kept,
        abilities=abilities,
        transposed=known.transposed,
        linears=tuple(wide_linears([layer]) for layer in stack.layers) if known.few_rows else (),
    )
    return engine


def _find_out(stack: ExitStack, name: str) -> _Known:
    """Measure the model by decoding a token of a short prompt, layer by layer.

    Raises ModelError if the model does not fit, or if the logits are not its own.
    """
    hf = stack.hf
    dtype = next(hf.parameters()).dtype
    nothing = KeptState((), False, 0, False, True)
    known = _Known(
        stack=None if stack.core is hf else dataclasses.replace(stack, hf=None),
        dtype=dtype,
        cache_name=find_cache_keyword(hf, name=name, dtype=str(dtype).removeprefix("torch.")),
        takes_positions="position_ids" in inspect.signature(hf.forward).parameters,
        kept=(nothing,) * len(stack),
        transposed=transposed_is_faster(stack),
        few_rows=few_rows_are_faster(stack.layers[:TRIED]),
    )
    ids = probe_ids(hf, PROMPT + 1)
    with torch.no_grad():
        expected = own_logits(_engine(stack, known), ids, 1)[-1]
        try:
            kept, logits = _decode_one(_engine(stack, known), ids, name)
        except UNFIT_ERRORS as error:
            raise_if_out_of_memory(error)
            raise _unfit(name, f"{type(error).__name__}: {error}") from error
    if not largest_difference(logits, expected) <= TOLERANCE[precision_of(hf)] * largest_finite(expected):
        raise _unfit(name, "layers called one by one give other logits than the model")
    if any(state.elsewhere for state in kept):
        raise _unfit(name, "its layers keep a state outside the cache's list of layers")
    if not any(state.entries for state in kept):
        raise _unfit(name, "nothing that its layers keep is found in its cache")
    return dataclasses.replace(known, kept=tuple(kept))


def _decode_one(engine: Engine, ids: Tensor, name: str) -> tuple[list[KeptState], Tensor]:
    """Decode the last token after the others; what each layer leaves behind, and the logits."""
    sequences = Sequences(engine, ids[:, :-1], None, Meter())
    inputs = sequences.inputs(0, PROMPT)
    sequences.run(inputs.hidden, inputs, 0, engine.layers)
    sequences.feed(ids[:, -1:])
    inputs = sequences.inputs(PROMPT, PROMPT + 1)
    if inputs.hidden.dim() != 3:
        raise _unfit(name, f"its hidden state has {inputs.hidden.dim()} axes instead of 3")
    hidden, kept = inputs.hidden, []
    for index, layer in enumerate(engine.stack.layers):
        call = sequences.call_of(inputs, index)
        state, hidden = find_kept_state(layer, call, sequences.cache, hidden)
        kept.append(state)
    return kept, sequences.read_out(hidden)


def _unfit(name: str, why: str) -> ModelError:
    return ModelError(
        f"the model cannot be driven layer by layer: {why}",
        where=name,
        fix="it can still be traced, scored, and replayed: offramp trace; docs/families.md lists what fits",
    )
