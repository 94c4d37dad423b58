"""A copy of a model whose layers only note what they are called with."""

from __future__ import annotations

import contextlib
import copy
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from offramp.models.calls import place_of_hidden
from offramp.models.stack import FORWARDS_REPLACED, ExitStack, with_hidden


class _AllNoted(Exception):
    """Ends the forward pass after its last layer was noted: tail and head never run."""


@dataclass(frozen=True)
class LayerCall:
    """What a layer is called with, its hidden state left out.

    before, after: positional arguments around the hidden state. keywords: without it. name: the keyword that
    takes it, None if it is positional.
    """

    before: tuple[Any, ...]
    after: tuple[Any, ...]
    keywords: dict[str, Any]
    name: str | None

    def arguments(self, hidden: Tensor) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Positional and keyword arguments with a hidden state in its place."""
        if self.name is None:
            return (*self.before, hidden, *self.after), self.keywords
        return self.before, {**self.keywords, self.name: hidden}

    def with_cache(self, view: Any, cache: Any) -> LayerCall:
        """The same call with the cache itself in the place of a view of it."""
        keywords = {name: cache if value is view else value for name, value in self.keywords.items()}
        before, after = (
            tuple(cache if value is view else value for value in values)
            for values in (self.before, self.after)
        )
        return LayerCall(before, after, keywords, self.name)


class Recorder:
    """Runs a model's forward pass up to its layers, and notes each layer's arguments.

    Works on copies of the modules on the way from the model to its layers, so that the model itself is never
    changed and threads do not meet. All other modules are shared with the model.
    """

    def __init__(self, stack: ExitStack) -> None:
        self._outputs = stack.layer_outputs
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
        return with_hidden(self._outputs[place], _hidden_of(arguments, keywords)[1])

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
