"""Models by name and transforms: found and checked first, loaded once all else fits, whole or layer by layer.

A transform may have to measure the model (see `layers_to_prune`), so this stands above `models`. Nothing of
torch is loaded before a model is.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.errors import InputError, ModelError
from offramp.kit.arguments import settled
from offramp.kit.given import Given, Kind
from offramp.kit.numbers import shown_size
from offramp.kit.sound import require_within
from offramp.models.devices import AUTO, CPU, DtypeName, find_device
from offramp.models.identity import ModelIdentity, shown_name
from offramp.models.source import ModelFiles, at_revision, is_object, named_object

if TYPE_CHECKING:
    from offramp.heads.exit_heads import ExitHeads
    from offramp.models.loading import Placement
    from offramp.models.model import Model
    from offramp.models.transforms.transform import Transform
    from offramp.workloads.workload import Workload


def load_model(
    name: str | Path,
    *,
    dtype: Any = AUTO,
    trust_remote_code: bool = False,
    transforms: str | Transform | Sequence[str | Transform] = (),
    device: Any = AUTO,
    revision: str | None = None,
    subfolder: str | None = None,
    device_map: Any = None,
    attn_implementation: str | None = None,
) -> Model:
    """Load a model, find its stack of exits, check that exit L reproduces its own logits, and transform it.

    name: a bundled model ("smollm2"), a local folder, a .gguf file, or a Hub id ("owner/name", or
    "owner/name@revision"). dtype: "float32", "bfloat16", or "auto", the checkpoint's on an accelerator and
    float32 on a processor. trust_remote_code: run Python code that comes with the model. transforms: texts
    such as "int8" or "prune:by=angular,layers=6", or transforms, applied in this order.
    device: "auto", "cpu", "cuda", "cuda:1", "mps" or "xpu". revision: a branch, tag or commit of a Hub id.
    subfolder: of the folder or repository, where the model lies. device_map, attn_implementation: as
    transformers takes them; with a device map, `device` is not asked for.

    Raises ModelError: an unknown name, a source that is unsafe, damaged or incomplete, a tokenizer of another
    model, weights that are not finite, exits that cannot be read out exactly, or a model that cannot be
    transformed so. InputError: a device that is not here, a transform that is unknown, given twice, or that
    no model or machine allows.
    """
    from offramp.models.loading import Placement

    # As transformers takes them, too: a path, torch's dtypes and devices.
    name, dtype, device = str(name), str(dtype).removeprefix("torch."), str(device)
    parsed = read_transforms(transforms, dtype)
    if device_map is not None:  # which says by itself where the model lies
        device = CPU if device_map == CPU else AUTO
    request = find_model(
        at_revision(name, revision),
        parsed,
        dtype=dtype,
        trust_remote_code=trust_remote_code,
        device=device,
        subfolder=subfolder,
    )
    return request.load(Placement(request.device, device_map, attn_implementation))


def read_transforms(
    given: str | Transform | Sequence[str | Transform] | None, dtype: str
) -> tuple[Transform, ...]:
    """The transforms of `--transform`, refused here, before any model is looked at, if they cannot be used.

    dtype: that the model will be loaded in; "auto" is looked at once the device is known.

    Raises InputError for a text that is none, a transform given twice, or one that this machine cannot do.
    """
    from offramp.models.transforms.transform import parse_transform

    listed = given if isinstance(given, Sequence) and not isinstance(given, str) else [given]
    transforms = tuple(
        parse_transform(transform) if isinstance(transform, str) else transform
        for transform in listed
        if transform is not None
    )
    require_usable(transforms, None if dtype == AUTO else dtype)
    return transforms


def require_usable(transforms: Sequence[Transform], dtype: str | None) -> None:
    """Refuse a transform that is given twice or that this machine cannot do in a dtype, None for any.

    Raises InputError.
    """
    from offramp.models.transforms.transform import require_distinct

    require_distinct(transforms)
    if dtype is not None:
        for transform in transforms:
            transform.check(dtype)


@dataclass(frozen=True)
class ModelRequest:
    """A model's files and what is to be done to it; no weight is loaded yet."""

    source: ModelFiles
    transforms: tuple[Transform, ...]
    dtype: str
    trust_remote_code: bool
    device: str = CPU
    """As `find_device`."""
    given: Model | None = None
    """The model itself, where it is an object of this process."""

    @property
    def texts(self) -> tuple[str, ...]:
        """The transforms as texts of their grammar."""
        return tuple(transform.text for transform in self.transforms)

    @property
    def name(self) -> str:
        """The model's name with what is to be done to it."""
        return shown_name(self.source.name, self.texts)

    @property
    def identity(self) -> ModelIdentity | None:
        """Who the model will be; None where the layers to drop are yet to be measured."""
        from offramp.models.transforms.prune import Prune

        if any(isinstance(transform, Prune) and not transform.resolved for transform in self.transforms):
            return None
        return dataclasses.replace(self.source.identity, transforms=self.texts)

    @property
    def layers(self) -> int | None:
        """How many layers the model will have, None where its config does not say, or not of a decoder."""
        from offramp.models.checkpoint import read_config, source_read, stated_layers
        from offramp.models.transforms.prune import Prune

        if self.given is not None:
            return self.given.layers
        config = read_config(self.source.folder)
        stated = stated_layers(config)
        if stated is None or source_read(config) in ("text", "audio"):
            return None
        return stated - sum(transform.count for transform in self.transforms if isinstance(transform, Prune))

    def require_heads(self, heads: ExitHeads, where: str) -> None:
        """Refuse exit heads of another model, as far as it is known which one this will be.

        Raises InputError that names both.
        """
        from offramp.heads.file import require_base

        if self.identity is not None:
            require_base(heads, {"name": self.source.name, **self.identity.to_json()}, where)

    def require_sources(self, kind: Kind | None, where: str, sounds: Iterable[Given] = ()) -> None:
        """Refuse an encoder-decoder without sources of its kind, and sources that no encoder reads or that
        last too long, before a weight is loaded. where: says which. sounds: of them. Raises InputError.
        """
        from offramp.models.checkpoint import fits_source, read_config, source_read, unfit_source

        model = self.given
        reads = source_read(read_config(self.source.folder)) if model is None else model.reads
        if not fits_source(reads, kind):
            raise unfit_source(self.source.name, reads=reads, given=kind, where=where)
        if kind == "audio":
            from offramp.models.loading import load_maker

            extractor = load_maker(self.source) if model is None else model.hf.maker
            for sound in sounds if extractor else ():  # without one, none is heard
                require_within(sound, extractor.chunk_length, self.source.name)

    def require_fitting(self, workloads: Iterable[Workload]) -> None:
        """The same for workloads. Raises InputError."""
        for workload in workloads:
            sounds = (document.given for document in workload.documents if document.given is not None)
            self.require_sources(workload.reads, f"the workload {workload.name}", sounds)

    def load(self, placement: Placement | None = None) -> Model:
        """The model, checked and transformed. placement: by default wholly on the device, as it is.

        Raises ModelError or InputError for what does not fit.
        """
        if self.given is not None:
            return self.given
        from offramp.models.loading import Placement

        return load_transformed(
            self.source,
            dtype=self.dtype,
            transforms=self.transforms,
            trust_remote_code=self.trust_remote_code,
            placement=placement or Placement(self.device),
        )


def find_model(
    name: str,
    transforms: Sequence[Transform],
    *,
    dtype: str,
    trust_remote_code: bool,
    device: str = AUTO,
    subfolder: str | None = None,
) -> ModelRequest:
    """A model's files, checked as far as possible without loading a weight; arguments as of `load_model`.

    Raises ModelError, and InputError for a device that is not here or transforms that it cannot do.
    """
    from offramp.models.checkpoint import stored_dtype
    from offramp.models.source import find_source

    dtype = settled("dtype", dtype, DtypeName, "str", ModelError)
    if is_object(name):
        return _of_object(named_object(name), transforms)
    device = find_device(device)
    source = find_source(name, trust_remote_code=trust_remote_code, subfolder=subfolder)
    if dtype == AUTO:
        dtype = "float32" if device == CPU else stored_dtype(source.whole().folder)
        require_usable(transforms, dtype)
    return ModelRequest(source, tuple(transforms), dtype, trust_remote_code, device)


def _of_object(model: Model, transforms: Sequence[Transform]) -> ModelRequest:
    """The request for a model object, as it is. Raises InputError for transforms, which would change it."""
    if transforms:
        raise InputError(
            "a model object is taken as it is, and a transform would change it",
            where=transforms[0].text,
            fix="transform it yourself and wrap the result, or load a model by name",
        )
    if model.transforms:
        raise InputError(
            f"{model.shown_name} was transformed by offramp, and an object is named without its transforms",
            where="model=",
            fix="name the model and give transforms=, or wrap what you transformed yourself",
        )
    source = ModelFiles(model.name, Path(), model.identity)
    return ModelRequest(source, (), model.dtype, False, str(model.stack.device), model)


def load_transformed(
    source: ModelFiles,
    *,
    dtype: str,
    transforms: Sequence[Transform],
    trust_remote_code: bool = False,
    progress: bool | None = None,
    placement: Placement | None = None,
) -> Model:
    """The model of a source with transforms applied in their order, each of them resolved on the one before.

    progress: bars on standard error where something is measured; by default if that is a terminal.
    placement: by default on the processor.

    Raises what `load_model` raises; what can be told from the transforms, the config and a trace is refused
    before any weight is loaded.
    """
    from offramp.models.loading import load_source
    from offramp.models.transforms.transform import apply_transform
    from offramp.tracing.layers_to_prune import resolve, resolve_early

    require_usable(transforms, dtype)
    ready = [resolve_early(transform, source) for transform in transforms]
    model = load_source(source, dtype=dtype, trust_remote_code=trust_remote_code, placement=placement)
    for transform in ready:
        model = apply_transform(resolve(transform, model, progress=progress), model)
    return model


def stays_on_disk(asked: ModelRequest, *, stream: bool | None, memory: int | None) -> bool:
    """Whether the layers of a requested model are left on disk; arguments as of `load_for_tracing`.

    Raises InputError for a model that is to be pruned and does not fit, or for a budget of a model that is to
    be whole.
    """
    from offramp.models.transforms.prune import Prune

    if memory is not None and stream is False:
        raise InputError(
            "--memory says how much of a model's weights may be in memory, --no-stream that all of them are",
            where="--memory",
            fix="leave out one of them",
        )
    # Pruning changes the list that layers are read into.
    pruned = any(isinstance(transform, Prune) for transform in asked.transforms)
    if pruned and (stream or memory is not None):
        raise InputError(
            "a model is pruned as a whole, so its layers cannot stay on disk",
            where=", ".join(asked.texts),
            fix="leave out the pruning, or --stream and --memory",
        )
    if asked.given is not None and (stream or memory is not None):
        raise InputError(
            "a model object is in memory, so its layers cannot stay on disk",
            where=asked.name,
            fix="leave out stream and memory, or name the model's folder",
        )
    if stream is False or not (stream or _exceeds(asked, memory)):
        return False
    if pruned:
        raise InputError(
            "a model is pruned as a whole, and its weights do not fit in the memory that is free",
            where=asked.name,
            fix="free some memory, leave out the pruning, or try all the same with --no-stream",
        )
    return True


def load_for_tracing(
    asked: ModelRequest, workloads: Sequence[Workload], *, stream: bool | None, memory: int | None
) -> Model:
    """The model of a request, whole or with its layers left on disk.

    stream: whether they are left there; None: if the weights do not fit in `memory` bytes, or in what is free
    if that is None. The choice is said on standard error.

    Raises ModelError for workloads that need all weights in memory, a transform that does nothing to layers
    on disk, and what loading raises; InputError for a model that is to be pruned and does not fit, or for a
    budget of a model that is to be whole.
    """
    asked.require_fitting(workloads)
    if not stays_on_disk(asked, stream=stream, memory=memory):
        return asked.load()
    from offramp.models.streaming import load_streamed, needed_memory
    from offramp.models.transforms.transform import apply_transform
    from offramp.tracing.streamed_layers import require_given_text

    need = needed_memory(asked.source, asked.dtype, trust_remote_code=asked.trust_remote_code)
    for workload in workloads:
        require_given_text(asked.name, workload, need.whole_bytes - need.resident_bytes)
    if stream is None:
        room = "the memory that is free" if memory is None else shown_size(memory)
        weights = f"the weights of {asked.name}, {shown_size(need.whole_bytes)},"
        print(f"offramp: {weights} do not fit in {room}: traced layer by layer from disk", file=sys.stderr)
    model = load_streamed(
        asked.source, dtype=asked.dtype, trust_remote_code=asked.trust_remote_code, memory_bytes=memory
    )
    for transform in asked.transforms:
        plain, model = model, apply_transform(transform, model)
        if model.streamed is plain.streamed:
            # What it did to the layers in memory, which have no weights, is lost when they are read.
            raise ModelError(
                f"{transform.text} cannot be applied to layers that stay on disk",
                where=plain.shown_name,
                fix="use --no-stream, on a machine with enough memory",
            )
    return model


def _exceeds(asked: ModelRequest, memory: int | None) -> bool:
    """Whether the weights are more than a budget in bytes, or than fits if that is None.

    Those of an object are in memory already.
    """
    if asked.given is not None:
        return False
    from offramp.models.streaming import weight_bytes, would_not_fit

    if memory is None:
        return would_not_fit(asked.source, asked.dtype)
    return weight_bytes(asked.source, asked.dtype) > memory
