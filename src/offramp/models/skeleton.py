"""A model without weights: parameters lie on the meta device, buffers are real."""

from __future__ import annotations

import itertools
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.initialization import no_init_weights

from offramp.errors import ModelError, raise_if_out_of_memory
from offramp.kit.numbers import whole_number
from offramp.models.checkpoint import read_config, source_read
from offramp.models.loading import LOADING_ERRORS, know_family
from offramp.models.source import ModelFiles

# Settings that may tell kinds of layers apart. Numbers with a fraction (scales, dropout) change no shape, and
# some families compute one from the layer's number.
PLAIN = (int, bool, str, type(None))


@dataclass(frozen=True)
class Skeleton:
    """A transformers model without weights."""

    hf: Any
    """The model, in eval mode."""
    layers: nn.ModuleList
    """Its list of decoder layers."""
    prefix: str
    """What the names of their tensors begin with, before the layer's number ("model.layers.")."""
    name: str
    """Of the model, for messages."""

    def layer_of(self, tensor: str) -> int | None:
        """The layer that a tensor of the model belongs to, from 0; None if it belongs to no layer."""
        if not tensor.startswith(self.prefix):
            return None
        number = whole_number(tensor.removeprefix(self.prefix).partition(".")[0], 0)
        return number if number is not None and number < len(self.layers) else None


def build_skeleton(source: ModelFiles, *, dtype: str, trust_remote_code: bool = False) -> Skeleton:
    """The model of a source without its weights, as `from_pretrained` would build it in that dtype.

    Raises ModelError if transformers cannot build it, if its weights are quantised, if it has no list of
    layers, or if layers share weights with each other or with the rest of the model.
    """
    from accelerate import init_empty_weights

    options = {"trust_remote_code": trust_remote_code, "local_files_only": True}
    auto_class: Any = AutoModelForCausalLM
    know_family(source)
    if source_read(read_config(source.folder)) not in (None, "image"):
        raise ModelError(
            "the layers of an encoder-decoder cannot be left on disk",
            where=str(source.folder),
            fix="use --no-stream, on a machine with enough memory",
        )
    try:
        config = AutoConfig.from_pretrained(source.folder, **options)
        _check_not_quantised(config, source)
        with no_init_weights(), init_empty_weights(include_buffers=False):
            hf = auto_class.from_config(
                config, dtype=getattr(torch, dtype), trust_remote_code=trust_remote_code
            )
        # As `from_pretrained` does: buffers that a family computes get their values in float32.
        hf.initialize_weights()
        if (source.folder / "generation_config.json").is_file():
            hf.generation_config = GenerationConfig.from_pretrained(source.folder, local_files_only=True)
        # Parameters made anew on the meta device are no longer the same object where the model ties them.
        hf.tie_weights()
    except LOADING_ERRORS as error:
        raise_if_out_of_memory(error)
        raise ModelError(
            f"transformers cannot build the model: {error}",
            where=str(source.folder),
            fix="check that config.json is of a causal language model that transformers knows",
        ) from error
    hf.eval().requires_grad_(False)
    path, layers = _find_layers(hf, source.name)
    skeleton = Skeleton(hf, layers, f"{path}.", source.name)
    _check_layers_apart(skeleton)
    for layer in layers:
        drop_weights(layer)
    return skeleton


def _check_not_quantised(config: Any, source: ModelFiles) -> None:
    for part in (config, config.get_text_config()):
        if getattr(part, "quantization_config", None):
            raise ModelError(
                "the weights are stored quantised; only plain weights can be read layer by layer",
                where=str(source.folder / "config.json"),
                fix="use the original checkpoint of this model, before it was quantised",
            )


def _find_layers(hf: Any, name: str) -> tuple[str, nn.ModuleList]:
    """Path and list of the decoder layers, as far as names and sizes tell.

    Of the outermost module lists, those inside of what the model names as its decoder come first, then those
    with the config's number of layers, then the one with most weights. That the model runs them, in this
    order, is found out once a few of them have weights.
    """
    expected = getattr(hf.config.get_text_config(), "num_hidden_layers", None)
    inside = set(hf.get_decoder().modules())
    lists = {path: module for path, module in hf.named_modules() if isinstance(module, nn.ModuleList)}
    outermost = [path for path in lists if not any(path.startswith(f"{outer}.") for outer in lists)]

    def unlikely(path: str) -> tuple[bool, bool, int]:
        elements = sum(weight.numel() for weight in lists[path].parameters())
        return lists[path] not in inside, len(lists[path]) != expected, -elements

    if not outermost:
        raise ModelError(
            "the model has no list of layers",
            where=name,
            fix="offramp reads models layer by layer whose layers are elements of one module list",
        )
    path = min(outermost, key=unlikely)
    return path, lists[path]


def _check_layers_apart(skeleton: Skeleton) -> None:
    """Refuse layers that share a parameter with each other or with the rest of the model."""
    for names in shared_parameters(skeleton.hf):
        owners = {skeleton.layer_of(name) for name in names}
        if owners != {None}:
            raise ModelError(
                f"the layers share weights: {names[0]} is also {names[1]}",
                where=skeleton.name,
                fix="load the model as a whole; it cannot be read layer by layer",
            )


def shared_parameters(hf: Any) -> list[list[str]]:
    """The groups of two names and more that one parameter has, such as a tied output head."""
    names: dict[nn.Parameter, list[str]] = {}
    for name, parameter in hf.named_parameters(remove_duplicate=False):
        names.setdefault(parameter, []).append(name)
    return [group for group in names.values() if len(group) > 1]


def _persistent_tensors(module: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """What a checkpoint holds of a module: owners, names, and their parameters or persistent buffers."""
    for owner in module.modules():
        for name, parameter in owner._parameters.items():
            if parameter is not None:
                yield owner, name, parameter
        for name, buffer in owner._buffers.items():
            if buffer is not None and name not in owner._non_persistent_buffers_set:
                yield owner, name, buffer


def set_tensor(module: nn.Module, name: str, value: Tensor) -> None:
    """Put a tensor in the place of a parameter or buffer; `name` may go through submodules."""
    path, _, own = name.rpartition(".")
    owner = module.get_submodule(path)
    if own in owner._parameters:
        value = nn.Parameter(value, requires_grad=False)
    setattr(owner, own, value)


def drop_weights(module: nn.Module) -> None:
    """Move everything of a module that a checkpoint holds to the meta device: its memory is free at once."""
    for owner, name, tensor in list(_persistent_tensors(module)):
        if not tensor.is_meta:
            set_tensor(owner, name, tensor.detach().to("meta"))


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
        and all(earlier[1] < later[1] for earlier, later in itertools.pairwise(found))
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
