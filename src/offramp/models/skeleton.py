"""A model without weights, and which tensors of a checkpoint make which of its tensors.

Parameters lie on the meta device, buffers are real. Names are changed and tensors merged as transformers' own
loading does it.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    build_glob_alternation,
    dot_natural_key,
    rename_source_key,
)
from transformers.initialization import no_init_weights
from transformers.utils.loading_report import LoadStateDictInfo

from offramp.errors import ModelError, raise_if_out_of_memory
from offramp.kit.numbers import whole_number
from offramp.models.checkpoint import StoredTensor, find_strangers, refuse_strangers
from offramp.models.discovery import UNFIT_ERRORS
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


Read = Callable[[StoredTensor], Tensor]


@dataclass
class Assembly:
    """One step of loading: tensors of a checkpoint that together make one or more tensors of the model."""

    target: str
    """The model's first tensor that it makes."""
    converter: WeightConverter | None
    """What merges or splits them (the experts of a layer, a fused projection); None if the one part is the
    tensor itself."""
    dtype: torch.dtype
    """Of the result."""
    parts: list[tuple[str, StoredTensor]] = field(default_factory=list)
    """The stored tensors, each with the pattern under which the converter knows it."""
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    """Of everything that it makes, by name."""
    layer: int | None = None
    """Where that belongs, None for what stays in memory."""

    def make(self, hf: Any, read: Read) -> dict[str, Tensor]:
        """The model's tensors by name; `read` gives a stored tensor, which is converted to `dtype`."""
        if self.converter is None:
            return {self.target: read(self.parts[0][1]).to(self.dtype)}
        converter: Any = copy.deepcopy(self.converter)
        for pattern, stored in self.parts:
            converter.add_tensor(self.target, stored.name, pattern, self._reading(stored, read))
        made = converter.convert(self.target, model=hf, config=hf.config)
        return {name: value[0] if isinstance(value, list) else value for name, value in made.items()}

    def _reading(self, stored: StoredTensor, read: Read) -> Callable[[], Tensor]:
        return lambda: read(stored).to(self.dtype)

    @property
    def result_bytes(self) -> int:
        """Bytes of what it makes."""
        return sum(torch.Size(shape).numel() for shape in self.shapes.values()) * self.dtype.itemsize

    @property
    def spare_bytes(self) -> int:
        """Bytes in use beside the result while it is made: the pieces that a converter merges."""
        return self.result_bytes if self.converter is not None else 0


@dataclass(frozen=True)
class WeightMap:
    """How all of a model's tensors come from a checkpoint."""

    resident: tuple[Assembly, ...]
    """What belongs to no layer."""
    layers: tuple[tuple[Assembly, ...], ...]
    """What belongs to each layer."""
    missing: frozenset[str]
    """Tensors of the model that the checkpoint does not have and that are not tied to one it has."""

    @property
    def layer_bytes(self) -> tuple[int, ...]:
        """Bytes of each layer's weights as they are loaded."""
        return tuple(sum(step.result_bytes for step in steps) for steps in self.layers)

    @property
    def reading_bytes(self) -> tuple[int, ...]:
        """Bytes at most in use while each layer is read."""
        return tuple(_most_bytes(steps) for steps in self.layers)


def _most_bytes(steps: Sequence[Assembly]) -> int:
    """Bytes at most in use while some steps are done in order and their results kept."""
    done = most = 0
    for step in steps:
        done += step.result_bytes
        most = max(most, done + step.spare_bytes)
    return most


def map_weights(skeleton: Skeleton, stored: Mapping[str, StoredTensor]) -> WeightMap:
    """Find out where every tensor of a checkpoint goes, and check its shape, without reading any.

    Names are changed and tensors merged by transformers' own rules for the family; the merging is run once on
    the meta device.

    Raises ModelError if tensors are missing, if there are layers that the model does not have, or if a shape
    is not that of the model.
    """
    assemblies, unexpected = _assign(skeleton.hf, stored)
    names: dict[str, Tensor] = skeleton.hf.state_dict()
    for assembly in assemblies:
        _try_on_meta(skeleton, assembly, names)
    made = {name for assembly in assemblies for name in assembly.shapes}
    missing = _check_complete(skeleton, names.keys() - made, unexpected)
    layers: list[list[Assembly]] = [[] for _ in skeleton.layers]
    for assembly in assemblies:
        if assembly.layer is not None:
            layers[assembly.layer].append(assembly)
    # The largest first: merging it needs most memory beside what is already there.
    ordered = [tuple(sorted(steps, key=lambda step: -step.result_bytes)) for steps in layers]
    resident = tuple(assembly for assembly in assemblies if assembly.layer is None)
    return WeightMap(resident, tuple(ordered), missing)


def _assign(hf: Any, stored: Mapping[str, StoredTensor]) -> tuple[list[Assembly], set[str]]:
    """The steps of loading in transformers' order, and the names of stored tensors that the model lacks.

    As `transformers.core_model_loading.convert_and_load_state_dict_in_model` does it.
    """
    rules = get_model_conversion_mapping(hf)
    renamings = [rule for rule in rules if isinstance(rule, WeightRenaming)]
    converters = [rule for rule in rules if isinstance(rule, WeightConverter)]
    by_pattern = {pattern: rule for rule in converters for pattern in rule.source_patterns}
    names = hf.state_dict()
    dtypes = _dtypes(hf, names)
    assemblies: dict[str, Assembly] = {}
    unexpected: set[str] = set()
    for key in sorted(stored, key=dot_natural_key):
        name, pattern = rename_source_key(key, renamings, converters, hf.base_model_prefix, names)
        if name not in names and key in names:
            name, pattern = rename_source_key(key, [], [], hf.base_model_prefix, names)
        if name not in names:
            unexpected.add(name)
            continue
        converter = None if pattern is None else by_pattern[pattern]
        assembly = assemblies.setdefault(name, Assembly(name, converter, dtypes[name]))
        assembly.parts.append((pattern or key, stored[key]))
    return list(assemblies.values()), unexpected


def _dtypes(hf: Any, names: Mapping[str, Tensor]) -> dict[str, torch.dtype]:
    """The dtype that each tensor of the model gets: its own, or float32 where the family insists on it."""
    plan = hf._get_dtype_plan(hf.dtype)
    dtypes = {name: tensor.dtype for name, tensor in names.items()}
    if plan:
        pattern, globs, _ = build_glob_alternation(list(plan))
        for name in names:
            found = pattern.search(name)
            if found is not None and found.lastgroup is not None:
                dtypes[name] = plan[globs[found.lastgroup]]
    return dtypes


def _try_on_meta(skeleton: Skeleton, assembly: Assembly, names: Mapping[str, Tensor]) -> None:
    """Run one step without data, to learn what it makes and whether that fits the model."""

    def read(stored: StoredTensor) -> Tensor:
        return torch.empty(stored.shape, device="meta")

    try:
        made = assembly.make(skeleton.hf, read)
    except UNFIT_ERRORS as error:
        raise _not_this_model(
            skeleton, assembly, f"it cannot be put together from them: {type(error).__name__}: {error}"
        ) from error
    for name, tensor in made.items():
        expected = names[name].shape if name in names else None
        if tensor.shape != expected:
            wanted = "does not exist" if expected is None else f"is {_axes(expected)}"
            raise _not_this_model(skeleton, assembly, f"there it {wanted}, here it is {_axes(tensor.shape)}")
    assembly.shapes = {name: tuple(tensor.shape) for name, tensor in made.items()}
    owners = {skeleton.layer_of(name) for name in made}
    if len(owners) > 1:
        raise ModelError(
            f"the weight files hold several layers in one tensor, {assembly.parts[0][1].name}",
            where=skeleton.name,
            fix="load the model as a whole; it cannot be read layer by layer",
        )
    assembly.layer = owners.pop()


def _axes(shape: Sequence[int]) -> str:
    return " x ".join(str(size) for size in shape) or "a single number"


def _not_this_model(skeleton: Skeleton, assembly: Assembly, why: str) -> ModelError:
    part = assembly.parts[0][1]
    beside = f" and {len(assembly.parts) - 1} others" if len(assembly.parts) > 1 else ""
    return ModelError(
        f"the weight files are not of the model that config.json describes: {assembly.target}: {why}",
        where=f"{part.file}, tensor {part.name}{beside}",
        fix="put the config.json and the weight files of one and the same model into the folder",
    )


def _check_complete(skeleton: Skeleton, lacking: set[str], unexpected: set[str]) -> frozenset[str]:
    """The model's tensors that tying will provide.

    Raises ModelError if others are missing, or if there are tensors of layers that the model lacks.
    """
    hf = skeleton.hf
    tied = {name for group in shared_parameters(hf) if not lacking.issuperset(group) for name in group}
    info = LoadStateDictInfo(
        missing_keys=lacking - tied,
        unexpected_keys=set(unexpected),
        mismatched_keys=set(),
        error_msgs=[],
        conversion_errors={},
        skipped_pp_keys=set(),
    )
    hf._adjust_missing_and_unexpected_keys(info)
    # What the family may lack keeps the value it was built with, if it has one.
    valueless = {name for name, tensor in hf.state_dict().items() if tensor.is_meta}
    missing = sorted(info.missing_keys | ((lacking - tied) & valueless))
    extra = find_strangers(hf, skeleton.prefix, len(skeleton.layers), info.unexpected_keys)
    if missing:
        also = f", and hold {len(extra)} others, the first is {extra[0]}" if extra else ""
        raise ModelError(
            f"the weight files lack {len(missing)} tensors of the model that config.json describes, "
            f"the first is {missing[0]}{also}",
            where=skeleton.name,
            fix="use a complete checkpoint of a causal language model, with its own config.json",
        )
    refuse_strangers(extra, skeleton.name)
    return frozenset(lacking)
