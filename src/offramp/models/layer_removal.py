"""Taking layers out of a model so that everything else in it fits: caches, masks, generation."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig

from offramp.errors import ModelError
from offramp.models.calls import UNFIT_ERRORS, continued, hidden_argument, with_hidden
from offramp.models.checkpoint import LAYER_COUNT_KEYS
from offramp.models.discovery import probe_ids
from offramp.models.stack import ExitStack

# Attributes that may be a layer's number though only one layer has them.
INDEX_WORDS = ("idx", "index", "layer_number", "layer_id")
# Lists of every config, and of token ids: never one entry per layer.
GENERAL_LISTS = frozenset(vars(PreTrainedConfig()))


def keep_layers(hf: Any, stack: ExitStack, keep: Sequence[int]) -> None:
    """Remove all other layers of a model, in place, and check that nothing but the removed layers is missing.

    hf: the model that `stack` was found in. keep: layers that stay, from 0, ascending. The layers are
    renumbered, the config and every list with one entry per layer are cut. The logits, with and without a
    cache, must afterwards be bit for bit those of the whole model with the removed layers passing their input
    on.

    Raises ModelError, with the model as it was, if no or an unknown layer is kept, if a layer is executed
    several times or shares weights with another, or if the family needs all its layers.
    """
    layers = _own_list(hf, stack)
    kept = _checked(len(layers), keep)
    ids = probe_ids(hf)
    try:
        with _passing([layer for index, layer in enumerate(layers) if index not in kept]):
            expected = _answers(hf, ids)
    except UNFIT_ERRORS as error:
        raise _unfit(hf, f"they pass on more than a hidden state ({error})") from error
    with contextlib.ExitStack() as undo:
        _remove(undo, hf, layers, kept)
        try:
            found = _answers(hf, ids)
        except UNFIT_ERRORS as error:
            raise _unfit(hf, f"its forward pass fails without them ({error})") from error
        _compare(hf, expected, found)
        undo.pop_all()  # what was removed stays removed


def _checked(layers: int, keep: Sequence[int]) -> list[int]:
    kept = list(keep)
    if not kept or kept != sorted(set(kept)) or kept[0] < 0 or kept[-1] >= layers:
        raise ModelError(
            f"these are not layers to keep: {kept}",
            where=f"a model of {layers} layers",
            fix=f"keep at least one of 0..{layers - 1}, in ascending order",
        )
    return kept


def _own_list(hf: Any, stack: ExitStack) -> nn.ModuleList:
    """The module list that holds exactly the layers of a stack, in their order."""
    if len(set(stack.layers)) != len(stack.layers):
        raise _unfit(hf, "it executes a layer several times")
    for module in hf.modules():
        if isinstance(module, nn.ModuleList) and tuple(module) == stack.layers:
            _check_apart(hf, module)
            return module
    raise _unfit(hf, "its layers are not all the elements of one module list in their order")


def _check_apart(hf: Any, layers: nn.ModuleList) -> None:
    """Refuse layers that have a weight in common."""
    owners: dict[nn.Parameter, int] = {}
    for index, layer in enumerate(layers):
        for name, parameter in layer.named_parameters():
            if owners.setdefault(parameter, index) != index:
                raise _unfit(hf, f"layers {owners[parameter] + 1} and {index + 1} share the weight {name}")


def _unfit(hf: Any, why: str) -> ModelError:
    return ModelError(
        f"layers of a {type(hf).__name__} cannot be removed: {why}",
        where=str(hf.config.model_type),
        fix="use the model with all its layers",
    )


@contextlib.contextmanager
def _passing(layers: Sequence[nn.Module]) -> Iterator[None]:
    """Some layers run, cache included, but what comes out of them is what went in."""

    def pass_on(module: nn.Module, arguments: Any, keywords: Any, output: Any) -> Any:
        hidden = hidden_argument(arguments, keywords)
        return output if hidden is None else with_hidden(output, hidden)

    handles = [layer.register_forward_hook(pass_on, with_kwargs=True) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _answers(hf: Any, ids: Tensor) -> tuple[Tensor, Tensor | None]:
    """Logits of a forward pass, and of its last position with a cache of the others (None if it cannot)."""
    with torch.no_grad():
        logits = hf(input_ids=ids, use_cache=False).logits
        try:
            cache = continued(hf(input_ids=ids[:, :-1], use_cache=True))
            step = hf(input_ids=ids[:, -1:], use_cache=True, **cache).logits
        except UNFIT_ERRORS:
            step = None
    return logits, step


def _compare(hf: Any, expected: Sequence[Tensor | None], found: Sequence[Tensor | None]) -> None:
    """Refuse a model whose logits, or those with a cache, are not what they should be."""
    for text, wanted, given in zip(("", " with a cache"), expected, found, strict=True):
        if wanted is not None and given is None:
            raise _unfit(hf, f"it does not run{text} without them")
        if wanted is not None and given is not None and not torch.equal(wanted, given):
            raise _unfit(hf, f"the other layers compute something else{text} when they move up")


def _remove(undo: contextlib.ExitStack, hf: Any, layers: nn.ModuleList, keep: list[int]) -> None:
    """Everything that has to change, with the way back in `undo`."""
    count = len(layers)
    around = [module for module in hf.modules() if any(child is layers for child in module.modules())]
    holders = [module for module in around if module is not layers]
    _renumber(undo, layers, keep)
    for config in _configs(hf, [*holders, *(inner for layer in layers for inner in layer.modules())]):
        _cut_config(undo, config, count, keep)
    for module in holders:
        _cut_attributes(undo, module, count, keep)
    for module_list in _parallel_lists(holders, count):
        elements = [module_list[index] for index in keep]
        _set(undo, module_list, "_modules", {str(place): element for place, element in enumerate(elements)})


def _set(undo: contextlib.ExitStack, owner: Any, name: str, value: Any) -> None:
    attributes = vars(owner)
    undo.callback(attributes.__setitem__, name, attributes[name])
    attributes[name] = value


def _renumber(undo: contextlib.ExitStack, layers: nn.ModuleList, keep: list[int]) -> None:
    """Give every attribute that is its own layer's number the number of the layer's new place."""
    places: dict[tuple[type, str], list[tuple[int, nn.Module]]] = {}
    for index, layer in enumerate(layers):
        for module in layer.modules():
            for name, value in vars(module).items():
                if type(value) is int:
                    places.setdefault((type(module), name), []).append((index, module))
    for (_, name), owners in places.items():
        if not all(vars(module)[name] == index for index, module in owners):
            continue
        if len({index for index, _ in owners}) > 1 or any(word in name for word in INDEX_WORDS):
            for index, module in owners:
                if index in keep:
                    _set(undo, module, name, keep.index(index))


def _configs(hf: Any, modules: Sequence[nn.Module]) -> list[Any]:
    """The text config and the configs that the layers and the modules around them hold, each once."""
    found = [hf.config.get_text_config(), hf.config.get_text_config(decoder=True)]
    found += [vars(module)["config"] for module in modules if "config" in vars(module)]
    return list({id(config): config for config in found if isinstance(config, PreTrainedConfig)}.values())


def _is_per_layer(name: str, value: Any, count: int) -> bool:
    return (
        isinstance(value, (list, tuple))
        and len(value) == count
        and name not in GENERAL_LISTS
        and not name.endswith("token_id")
    )


def _cut_attributes(undo: contextlib.ExitStack, owner: Any, count: int, keep: list[int]) -> None:
    """Cut the lists with one entry per layer, and the number of layers, among an object's own attributes."""
    for name, value in list(vars(owner).items()):
        if name in LAYER_COUNT_KEYS and value == count:
            _set(undo, owner, name, len(keep))
        elif _is_per_layer(name, value, count):
            _set(undo, owner, name, type(value)(value[index] for index in keep))


def _cut_config(undo: contextlib.ExitStack, config: Any, count: int, keep: list[int]) -> None:
    """Cut a config; what it computes for each layer from a layer's number becomes a fixed list."""
    computed = {
        name: value for name, value in _computed_lists(config).items() if _is_per_layer(name, value, count)
    }
    _cut_attributes(undo, config, count, keep)
    cut = {name: type(value)(value[index] for index in keep) for name, value in computed.items()}
    now = _computed_lists(config)
    fixed = {name: value for name, value in cut.items() if now.get(name) != value}
    if fixed:
        own = type(config)
        object.__setattr__(config, "__class__", type(own.__name__, (own,), fixed))
        undo.callback(object.__setattr__, config, "__class__", own)


def _computed_lists(config: Any) -> dict[str, Any]:
    """The properties of a config's class, apart from those of every config."""
    names = [name for name in dir(type(config)) if isinstance(getattr(type(config), name, None), property)]
    own = [name for name in names if not hasattr(PreTrainedConfig, name)]
    return {name: value for name in own if (value := getattr(config, name, None)) is not None}


def _parallel_lists(holders: Sequence[nn.Module], count: int) -> list[nn.ModuleList]:
    """The list of layers itself and those beside it with one module for each layer."""
    children = [child for module in holders for child in module.children()]
    return [child for child in children if isinstance(child, nn.ModuleList) and len(child) == count]
