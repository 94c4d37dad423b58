"""A streamed model with a few of its layers in memory, the others passing on: what is found out with it."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from offramp.errors import ModelError
from offramp.models.calls import Recorder, first_tensor, hidden_argument, replaced_forward, with_hidden
from offramp.models.discovery import UNFIT_ERRORS, find_stack, probe_ids
from offramp.models.measuring import measure_shape
from offramp.models.shape import ModelShape
from offramp.models.stack import ExitStack
from offramp.models.streaming.layers import ShardedLayers
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


@dataclasses.dataclass(frozen=True)
class PartialModel:
    """Which layers of a model have their weights while the others only pass their input on.

    kinds: for each layer the first one like it, from 0. real: layers with weights, ascending: the first of
    each kind and the one before it, so that every kind is also seen to follow another layer.
    """

    kinds: tuple[int, ...]
    real: tuple[int, ...]


def plan_partial_model(skeleton: Skeleton) -> PartialModel:
    """The partial of a model, with at least two real layers if the model has two."""
    kinds = kinds_of_layers(skeleton)
    second = {1} if len(kinds) > 1 else set()
    before = {kind - 1 for kind in kinds if kind > 0}
    return PartialModel(tuple(kinds), tuple(sorted({*kinds, *before, *second})))


def discover(
    skeleton: Skeleton, streamed: ShardedLayers, partial: PartialModel
) -> tuple[ExitStack, ModelShape]:
    """The stack of exits and the shape of the whole model, found with a few of its layers in memory.

    Raises ModelError if the exits cannot be read out exactly, or if running the layers one by one, each from
    the arguments recorded without the others, is not bit for bit what the model computes.
    """
    with streamed.layers(partial.real), _others_passing(skeleton, partial):
        stack = find_stack(skeleton.hf, name=skeleton.name)
        if stack.layers != tuple(skeleton.layers):
            raise _not_streamable(skeleton, "it does not run its list of layers once, in order")
        _check_driven(skeleton, stack)
        with_weights = _recorded_tensors(skeleton, stack)
        shape = measure_shape(skeleton.hf, stack)
    without = _recorded_tensors(skeleton, stack)
    if len(without) != len(with_weights) or not all(map(_same, with_weights, without)):
        raise _not_streamable(skeleton, "what its layers are called with depends on their weights")
    layers = tuple(shape.layers[kind] for kind in partial.kinds)
    return stack, dataclasses.replace(shape, layers=layers)


@contextlib.contextmanager
def _others_passing(skeleton: Skeleton, partial: PartialModel) -> Iterator[None]:
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
        layer: passing(partial.kinds[index])
        for index, layer in enumerate(skeleton.layers)
        if index not in partial.real
    }
    handles = [skeleton.layers[kind].register_forward_hook(note(kind)) for kind in {*partial.kinds}]
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
