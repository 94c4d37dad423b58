"""Weights that a decoding step multiplies for every cached position, not only for its own token."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from offramp.models.caches import is_cache
from offramp.models.discovery import UNFIT_ERRORS, probe_ids

# Positions in the cache of the step that is watched: a number that few products have as rows by chance.
CACHED_POSITIONS = 11


class _Products(TorchFunctionMode):
    """Adds up, for the layer that runs, the weights of products with a row for every attended position."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.elements = dict.fromkeys(map(id, layers), 0)
        self.running: nn.Module | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and self.running is not None:
            inputs, weight = args[0], args[1]
            if inputs.numel() == (CACHED_POSITIONS + 1) * inputs.shape[-1]:
                self.elements[id(self.running)] += weight.numel()
        return func(*args, **(kwargs or {}))

    def enter(self, layer: nn.Module, arguments: Any) -> None:
        """The layer begins to run."""
        self.running = layer

    def leave(self, layer: nn.Module, arguments: Any, output: Any) -> None:
        """The layer has run."""
        self.running = None


def expansion_parameters(hf: Any, layers: Sequence[nn.Module]) -> list[int]:
    """Elements of each layer's weights that one decoding step multiplies once for every attended position.

    Latent attention that keeps a latent in the cache makes K and V of all positions anew at every step (as
    transformers does for DeepSeek's, arXiv 2405.04434, section 2.1). Zero for a family that cannot decode a
    single token with a cache.
    """
    ids = probe_ids(hf, CACHED_POSITIONS + 1)
    products = _Products(layers)
    keyword = "cache" if "cache" in inspect.signature(hf.forward).parameters else "past_key_values"
    with torch.no_grad():
        try:
            output = hf(input_ids=ids[:, :-1], use_cache=True)
            cache = next((value for value in output.values() if is_cache(value)), None)
            if cache is None:
                return [0] * len(layers)
            with _hooked(layers, products), products:
                hf(input_ids=ids[:, -1:], **{keyword: cache}, use_cache=True)
        except UNFIT_ERRORS:
            return [0] * len(layers)
    return [products.elements[id(layer)] for layer in layers]


@contextmanager
def _hooked(layers: Sequence[nn.Module], products: _Products) -> Iterator[None]:
    handles = []
    try:
        for layer in dict.fromkeys(layers):
            handles.append(layer.register_forward_pre_hook(products.enter))
            handles.append(layer.register_forward_hook(products.leave))
        yield
    finally:
        for handle in handles:
            handle.remove()
