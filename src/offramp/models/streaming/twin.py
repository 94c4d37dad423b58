"""What is found out about a streamed model with a few of its layers in memory, and the others passing on."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from offramp.errors import ModelError
from offramp.models.calls import first_tensor, hidden_argument
from offramp.models.discovery import UNFIT_ERRORS, find_stack, probe_ids
from offramp.models.measuring import measure_shape
from offramp.models.recording import Recorder
from offramp.models.shape import ModelShape
from offramp.models.stack import ExitStack, replaced_forward, with_hidden
from offramp.models.streaming.kinds import kinds_of_layers
from offramp.models.streaming.shards import ShardedLayers
from offramp.models.streaming.skeleton import Skeleton


@dataclasses.dataclass(frozen=True)
class Twin:
    """Which layers of a model have their weights while the others only pass their input on.

    kinds: for each layer the first one like it, from 0. real: layers with weights, ascending: the first of
    each kind and the one before it, so that every kind is also seen to follow another layer.
    """

    kinds: tuple[int, ...]
    real: tuple[int, ...]


def plan_twin(skeleton: Skeleton) -> Twin:
    """The twin of a model, with at least two real layers if the model has two."""
    kinds = kinds_of_layers(skeleton)
    second = {1} if len(kinds) > 1 else set()
    before = {kind - 1 for kind in kinds if kind > 0}
    return Twin(tuple(kinds), tuple(sorted({*kinds, *before, *second})))


def discover(skeleton: Skeleton, streamed: ShardedLayers, twin: Twin) -> tuple[ExitStack, ModelShape]:
    """The stack of exits and the shape of the whole model, found with a few of its layers in memory.

    Raises ModelError if the exits cannot be read out exactly, or if running the layers one by one, each from
    the arguments recorded without the others, is not bit for bit what the model computes.
    """
    with streamed.layers(twin.real), _others_passing(skeleton, twin):
        stack = find_stack(skeleton.hf, name=skeleton.name)
        if stack.layers != tuple(skeleton.layers):
            raise _not_streamable(skeleton, "it does not run its list of layers once, in order")
        _check_driven(skeleton, stack)
        with_weights = _recorded_tensors(skeleton, stack)
        shape = measure_shape(skeleton.hf, stack)
    without = _recorded_tensors(skeleton, stack)
    if len(without) != len(with_weights) or not all(map(_same, with_weights, without)):
        raise _not_streamable(skeleton, "what its layers are called with depends on their weights")
    layers = tuple(shape.layers[kind] for kind in twin.kinds)
    return stack, dataclasses.replace(shape, layers=layers)


@contextlib.contextmanager
def _others_passing(skeleton: Skeleton, twin: Twin) -> Iterator[None]:
    """Run with the layers without weights handing on their input, in the form that their kind returns."""
    outputs: dict[int, Any] = {}

    def note(kind: int) -> Callable[..., None]:
        return lambda module, arguments, output: outputs.__setitem__(kind, output)

    def passing(kind: int) -> Callable[..., Any]:
        def forward(*arguments: Any, **keywords: Any) -> Any:
            hidden = hidden_argument(arguments, keywords)
            if hidden is None:
                raise LookupError("a layer is called without a hidden state")
            return with_hidden(outputs[kind], hidden)

        return forward

    others = {
        layer: passing(twin.kinds[index])
        for index, layer in enumerate(skeleton.layers)
        if index not in twin.real
    }
    handles = [skeleton.layers[kind].register_forward_hook(note(kind)) for kind in {*twin.kinds}]
    try:
        with replaced_forward(others):
            yield
    finally:
        for handle in handles:
            handle.remove()


def _check_driven(skeleton: Skeleton, stack: ExitStack) -> None:
    """Compare every layer's output with that of the model's own forward pass, on two documents at once."""
    first = probe_ids(skeleton.hf)
    ids = torch.cat([first, first.flip(1)])
    expected: list[Tensor] = []
    stack.capture(ids, lambda index, before, after: expected.append(after.clone()))
    recorder = Recorder(stack)
    hidden = None
    for index, layer in enumerate(stack.layers):
        # Recorded anew for every layer: what layers hand to each other on the side is then not there.
        start, calls = _record(skeleton, recorder, ids)
        arguments, keywords = calls[index].arguments(start if hidden is None else hidden)
        try:
            with torch.no_grad():
                hidden = first_tensor(layer(*arguments, **keywords))
        except UNFIT_ERRORS as error:
            raise _not_streamable(
                skeleton, f"a layer cannot run without the others: {type(error).__name__}: {error}"
            ) from error
        if not torch.equal(hidden, expected[index]):
            raise _not_streamable(skeleton, "its layers compute something else when they run one by one")


def _recorded_tensors(skeleton: Skeleton, stack: ExitStack) -> list[Tensor]:
    """All tensors that the layers are called with in a short forward pass of which only the rest runs."""
    first, calls = _record(skeleton, Recorder(stack), probe_ids(skeleton.hf))
    leaves = tree_leaves([first, [(call.before, call.after, call.keywords) for call in calls]])
    return [leaf for leaf in leaves if isinstance(leaf, Tensor)]


def _same(one: Tensor, other: Tensor) -> bool:
    return one.device == other.device and torch.equal(one, other)


def _record(skeleton: Skeleton, recorder: Recorder, ids: Tensor) -> Any:
    try:
        with torch.no_grad():
            return recorder(input_ids=ids, use_cache=False)
    except UNFIT_ERRORS as error:
        raise _not_streamable(
            skeleton, f"it cannot run without its layers: {type(error).__name__}: {error}"
        ) from error


def _not_streamable(skeleton: Skeleton, why: str) -> ModelError:
    return ModelError(
        f"a {type(skeleton.hf).__name__} cannot be read layer by layer: {why}",
        where=skeleton.name,
        fix="load it as a whole, on a machine whose memory it fits",
    )
