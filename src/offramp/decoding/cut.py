"""Skipped layers that still leave K and V: each runs only until it has written to the cache."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from offramp.decoding.stopwatch import Stopwatch, hidden_argument
from offramp.models.stack import ExitStack


class _Written(Exception):
    """Ends a layer that has written its K and V."""


@contextmanager
def cut_after_cache_update(
    stack: ExitStack, cache: Any, indices: Collection[int], stopwatch: Stopwatch
) -> Iterator[set[int]]:
    """Run the layers of `indices` (0 = the first) only until their cache update, and pass their input on.

    This is what an exit leaves behind for later tokens: K and V projected from its hidden state (CALM, arXiv
    2207.07061, "hidden state propagation"). Yields the set of the layers that were cut so far; a layer that
    never updates the cache runs whole. Everything is put back whatever happens.
    """
    cut: set[int] = set()
    inside = False
    update = cache.update

    def update_then_stop(*arguments: Any, **keywords: Any) -> Any:
        written = update(*arguments, **keywords)
        if inside and stopwatch.executed in indices:
            raise _Written
        return written

    def until_written(forward: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **keywords: Any) -> Any:
            nonlocal inside
            inside = True
            try:
                return forward(*arguments, **keywords)
            except _Written:
                index = stopwatch.executed
                cut.add(index)
                hidden = hidden_argument(arguments, keywords)
                return _passed_on(stack.layer_outputs[index], hidden)
            finally:
                inside = False

        return run

    layers: list[nn.Module] = list(dict.fromkeys(stack.layers))
    own = {layer: layer.__dict__.get("forward") for layer in layers}
    try:
        cache.__dict__["update"] = update_then_stop
        for layer in layers:
            layer.__dict__["forward"] = until_written(layer.forward)
        yield cut
    finally:
        del cache.__dict__["update"]
        for layer, forward in own.items():
            if forward is None:
                layer.__dict__.pop("forward", None)
            else:
                layer.__dict__["forward"] = forward


def _passed_on(output: Any, hidden: Tensor | None) -> Any:
    """A layer's recorded output with another hidden state, its other tensors left out."""
    if isinstance(output, (tuple, list)):
        return (hidden, *[None if isinstance(item, Tensor) else item for item in output[1:]])
    return hidden
