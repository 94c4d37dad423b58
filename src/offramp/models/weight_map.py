"""Which tensors of a checkpoint make which of a model's, named and merged as by transformers' own loading."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import (
    WeightConverter,
    WeightRenaming,
    build_glob_alternation,
    dot_natural_key,
    rename_source_key,
)
from transformers.utils.loading_report import LoadStateDictInfo

from offramp.errors import ModelError
from offramp.models.calls import UNFIT_ERRORS
from offramp.models.checkpoint import StoredTensor, find_strangers, refuse_strangers
from offramp.models.skeleton import Skeleton, shared_parameters
from offramp.models.tensors import check_kind

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
    assemblies, unexpected = assign(skeleton.hf, stored)
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


def assign(hf: Any, stored: Mapping[str, StoredTensor]) -> tuple[list[Assembly], set[str]]:
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
        check_kind(stored[key], dtypes[name])
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

    Raises ModelError if others are missing, or if there are tensors that the model lacks.
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
