"""Which layers of a model are alike: built of the same modules, with weights of the same shapes."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Sequence
from typing import Any

from torch import nn

from offramp.models.streaming.skeleton import Skeleton

# Settings that may tell kinds of layers apart. Numbers with a fraction (scales, dropout) change no shape, and
# some families compute one from the layer's number.
PLAIN = (int, bool, str, type(None))


def kinds_of_layers(skeleton: Skeleton) -> list[int]:
    """For each layer the first one, from 0, that is like it in everything but the values of its weights.

    Alike: the same classes of modules, the same shapes and dtypes of weights and buffers, the same plain
    settings (attention window, use of positions) apart from counters of layers, and the same name in every
    list of names with one entry per layer in the config (`layer_types`).
    """
    layers = list(skeleton.layers)
    counters = _counters(layers)
    names = _names_in_config(skeleton.hf.config.get_text_config(), len(layers))
    first: dict[Hashable, int] = {}
    return [
        first.setdefault((_look(layer, counters), names[index]), index) for index, layer in enumerate(layers)
    ]


def _settings(layer: nn.Module) -> dict[tuple[str, str], Any]:
    return {
        (path, name): value
        for path, module in layer.named_modules()
        for name, value in vars(module).items()
        if type(value) in PLAIN and name != "training"
    }


def _counters(layers: Sequence[nn.Module]) -> set[tuple[str, str]]:
    """Settings that count layers: whole numbers that grow from each layer that has them to the next."""
    values: dict[tuple[str, str], list[tuple[int, Any]]] = {}
    for index, layer in enumerate(layers):
        for setting, value in _settings(layer).items():
            values.setdefault(setting, []).append((index, value))
    return {
        setting
        for setting, found in values.items()
        if len(found) > 1
        and all(type(value) is int and value <= index + 1 for index, value in found)
        and all(one[1] < other[1] for one, other in itertools.pairwise(found))
    }


def _look(layer: nn.Module, counters: set[tuple[str, str]]) -> Hashable:
    classes = tuple((path, type(module)) for path, module in layer.named_modules())
    tensors = (*layer.named_parameters(), *layer.named_buffers())
    shapes = tuple((name, tensor.shape, tensor.dtype) for name, tensor in tensors)
    settings = _settings(layer)
    return classes, shapes, tuple((key, settings[key]) for key in settings if key not in counters)


def _names_in_config(config: Any, layers: int) -> list[tuple[str, ...]]:
    lists = [
        value
        for value in config.to_dict().values()
        if isinstance(value, (list, tuple)) and len(value) == layers
        if all(isinstance(item, str) for item in value)
    ]
    return [tuple(value[index] for value in lists) for index in range(layers)]
