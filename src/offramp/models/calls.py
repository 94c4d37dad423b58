"""Calls of modules: what goes in and comes out, watched, replaced or noted, and the caches among it."""

from __future__ import annotations

import contextlib
import copy
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from offramp.models.stack import ExitStack

# What a family raises that cannot do a thing: be read out so, run with a cache, generate with a batch.
UNFIT_ERRORS = (AttributeError, LookupError, RuntimeError, TypeError, ValueError)

# Held while modules have other `forward` methods: no other thread may replace or copy them then.
FORWARDS_REPLACED = threading.RLock()


def first_tensor(output: Any) -> Any:
    """The hidden state of a layer's output: the output itself, or the first element of a tuple."""
    return output[0] if isinstance(output, (tuple, list)) and output else output


def hidden_argument(arguments: tuple[Any, ...], keywords: Mapping[str, Any]) -> Tensor | None:
    """The hidden state among a layer's arguments: the first floating-point tensor."""
    found = place_of_hidden(arguments, keywords)
    return None if found is None else found[1]


def place_of_hidden(
    arguments: tuple[Any, ...], keywords: Mapping[str, Any]
) -> tuple[int | str, Tensor] | None:
    """Place or keyword of the hidden state among a layer's arguments, and the state."""
    places: list[tuple[int | str, Any]] = [*enumerate(arguments), *keywords.items()]
    for place, value in places:
        if isinstance(value, Tensor) and value.is_floating_point():
            return place, value
    return None


@dataclass(frozen=True)
class HandedOn:
    """In the place of a tensor that layer 1 hands on beside its state and later layers are given, such as
    T5's position bias (see `offramp.models.stack.ExitStack.handed_on`).
    """

    place: int
    """In the layer's output."""


def with_hidden(output: Any, hidden: Tensor, handed_on: Collection[int] = ()) -> Any:
    """A module's recorded output with another hidden state; its other tensors (states, weights) left out.

    handed_on: places of those for which something stands that says so.
    """
    if isinstance(output, (tuple, list)):
        rest = [
            HandedOn(place) if place in handed_on else None if isinstance(item, Tensor) else item
            for place, item in enumerate(output[1:], 1)
        ]
        return (hidden, *rest)
    if isinstance(output, Tensor):
        return hidden
    output = copy.copy(output)
    output["last_hidden_state"] = hidden
    return output


@contextmanager
def hooked(modules: Iterable[nn.Module], before: Any, after: Any) -> Iterator[None]:
    """Run with two functions called around every call of some modules, once for a module given twice.

    before(module, arguments, keywords); after(module, arguments, keywords, output).
    """
    handles = []
    try:
        for module in dict.fromkeys(modules):
            handles.append(module.register_forward_pre_hook(before, with_kwargs=True))
            handles.append(module.register_forward_hook(after, with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def replaced_forward(replacements: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Run with other `forward` methods on some modules."""
    with FORWARDS_REPLACED:
        yield from _with_replaced(replacements)


def _with_replaced(replacements: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    saved: dict[nn.Module, Any] = {module: module.__dict__.get("forward") for module in replacements}
    try:
        for module, forward in replacements.items():
            module.__dict__["forward"] = forward
        yield
    finally:
        for module, own in saved.items():
            if own is None:
                module.__dict__.pop("forward", None)
            else:
                module.__dict__["forward"] = own


class _AllNoted(Exception):
    """Ends the forward pass after its last layer was noted: tail and head never run."""


@dataclass(frozen=True)
class LayerCall:
    """What a layer is called with, its hidden state left out."""

    before: tuple[Any, ...]
    """Positional arguments in front of the hidden state."""
    after: tuple[Any, ...]
    """Those behind it."""
    keywords: dict[str, Any]
    """Keyword arguments without the hidden state."""
    name: str | None
    """The keyword that takes it, None if it is positional."""

    def arguments(self, hidden: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments with a hidden state in its place."""
        if self.name is None:
            return (*self.before, hidden, *self.after), self.keywords
        return self.before, {**self.keywords, self.name: hidden}

    def with_cache(self, view: Any, cache: Any) -> LayerCall:
        """The same call with the cache itself in the place of a view of it."""
        return self.changed(lambda value: cache if value is view else value)

    def with_handed_on(self, output: Any) -> LayerCall:
        """The same call with what layer 1 handed on in its output."""
        return self.changed(lambda value: output[value.place] if isinstance(value, HandedOn) else value)

    def changed(self, changed: Callable[[Any], Any]) -> LayerCall:
        """The same call with each argument but the hidden state as something makes it."""
        keywords = {name: changed(value) for name, value in self.keywords.items()}
        before, after = (tuple(map(changed, values)) for values in (self.before, self.after))
        return LayerCall(before, after, keywords, self.name)


class Recorder:
    """Runs a model's forward pass up to its layers, and notes each layer's arguments.

    Works on copies of the modules on the way from the model to its layers, so that the model itself is never
    changed and threads do not meet. All other modules are shared with the model.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._outputs = stack.layer_outputs
        self._handed_on = stack.handed_on
        self._noted: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        with FORWARDS_REPLACED:
            self._model = self._copied(stack.hf, frozenset(stack.layers), {})

    def _copied(
        self, module: nn.Module, layers: frozenset[nn.Module], copies: dict[nn.Module, nn.Module]
    ) -> nn.Module:
        """A shallow copy without hooks, its layers replaced; the module itself if no layer lies in it."""
        if module not in copies:
            if module in layers:
                copies[module] = _shallow(module)
                copies[module].__dict__["forward"] = self._note
            elif layers.isdisjoint(module.modules()):
                copies[module] = module
            else:
                copies[module] = _shallow(module)
                for name, child in module._modules.items():
                    if child is not None:
                        copies[module]._modules[name] = self._copied(child, layers, copies)
        return copies[module]

    def _note(self, *arguments: Any, **keywords: Any) -> Any:
        place = len(self._noted)
        self._noted.append((arguments, keywords))
        if place + 1 == len(self._outputs):
            raise _AllNoted
        return with_hidden(self._outputs[place], _hidden_of(arguments, keywords)[1], self._handed_on)

    def __call__(self, **inputs: Any) -> tuple[Tensor, list[LayerCall]]:
        """The hidden state that the first layer is given, and the call of every layer."""
        self._noted.clear()
        try:
            with contextlib.suppress(_AllNoted):
                self._model(**inputs)
            if len(self._noted) != len(self._outputs):
                raise LookupError(f"{len(self._noted)} of {len(self._outputs)} layers were called")
            first = _hidden_of(*self._noted[0])[1]
            return first, [_call(*noted) for noted in self._noted]
        finally:
            # The copies hold this object and it holds them: only the collector would free what was noted.
            self._noted.clear()


def _shallow(module: nn.Module) -> nn.Module:
    copied = copy.copy(module)
    copied.__dict__["_modules"] = dict(module._modules)
    for name in ("_forward_hooks", "_forward_pre_hooks"):
        copied.__dict__[name] = OrderedDict()
    return copied


def _hidden_of(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> tuple[int | str, Tensor]:
    """Place or keyword of a layer's hidden state, and the state; raises LookupError if it has none."""
    found = place_of_hidden(arguments, keywords)
    if found is None:
        raise LookupError("a layer is called without a hidden state")
    return found


def _call(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> LayerCall:
    place, _ = _hidden_of(arguments, keywords)
    if isinstance(place, int):
        return LayerCall(arguments[:place], arguments[place + 1 :], keywords, None)
    rest = {name: value for name, value in keywords.items() if name != place}
    return LayerCall(arguments, (), rest, place)


CROSS = "cross_attention_cache"
"""Where a cache holds K and V of an encoder's output, which are made once a request and are no token's."""


def cross_tensors(arguments: Any) -> list[Tensor]:
    """K and V of an encoder's output in the caches among a layer's arguments."""
    crossed = [cache for cache in caches_among(arguments) if hasattr(cache, CROSS)]
    return [tensor for cache in crossed for tensor in _walk(getattr(cache, CROSS), set())]


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


def continued(output: Any) -> dict[str, Any]:
    """The keyword argument by which a model goes on from the cache in its output, of the same name there.

    Raises LookupError where the output holds none.
    """
    name = next((name for name, value in output.items() if is_cache(value)), None)
    if name is None:
        raise LookupError("the model returns no cache")
    return {name: output[name]}


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
        for name, part in vars(value).items():
            if name != CROSS:
                yield from _walk(part, seen)
