"""`load_model`: from a name and transforms to a checked model; it may measure, so it is not in `models`."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.models import loading
from offramp.models.checkpoint import read_config, stated_layers
from offramp.models.model import Model
from offramp.models.source import Source
from offramp.models.transforms.grammar import parse_transform, require_distinct
from offramp.models.transforms.prune import Prune
from offramp.models.transforms.transform import Transform
from offramp.tracing.layer_importance import resolve, resolve_from_trace
from offramp.workloads.registry import load_workload


def load_model(
    name: str,
    *,
    dtype: str = "float32",
    trust_remote_code: bool = False,
    transforms: str | Transform | Sequence[str | Transform] = (),
) -> Model:
    """Load a model, find its stack of exits, check that exit L reproduces its own logits, and transform it.

    name: a bundled model ("smollm2"), a local folder, a .gguf file, or a Hub id ("owner/name"). dtype:
    "float32" or "bfloat16". trust_remote_code: run Python code that comes with the model. transforms: texts
    such as "int8" or "prune:by=angular,layers=6", or transforms, applied in this order.

    Raises ModelError: an unknown name, a source that is unsafe, damaged or incomplete, a tokenizer of another
    model, weights that are not finite, exits that cannot be read out exactly, or a model that cannot be
    transformed so. InputError: a transform that is unknown, given twice, or that no model or machine allows.
    """
    loading.require_dtype(dtype)
    parsed = _parsed(transforms)
    require_usable(parsed, dtype)
    source = loading.find_source(name, trust_remote_code=trust_remote_code)
    return load_transformed(source, dtype=dtype, transforms=parsed, trust_remote_code=trust_remote_code)


def load_transformed(
    source: Source,
    *,
    dtype: str,
    transforms: Sequence[Transform],
    trust_remote_code: bool = False,
    progress: bool | None = None,
) -> Model:
    """The model of a source with transforms applied in their order, each of them resolved on the one before.

    progress: bars on standard error where something is measured; by default if that is a terminal.

    Raises what `load_model` raises; what can be told from the transforms, the config and a trace is refused
    before any weight is loaded.
    """
    require_usable(transforms, dtype)
    ready = [_resolved_early(transform, source) for transform in transforms]
    model = loading.load_source(source, dtype=dtype, trust_remote_code=trust_remote_code)
    for transform in ready:
        model = resolve(transform, model, progress=progress).apply(model)
    return model


def require_usable(transforms: Sequence[Transform], dtype: str) -> None:
    """Refuse a transform that is given twice or that this machine cannot do in a dtype. Raises InputError."""
    require_distinct(transforms)
    for transform in transforms:
        transform.check(dtype)


def _parsed(transforms: str | Transform | Sequence[str | Transform]) -> list[Transform]:
    if isinstance(transforms, str):
        return [parse_transform(transforms)]
    if isinstance(transforms, Sequence):
        return [parse_transform(one) if isinstance(one, str) else one for one in transforms]
    return [transforms]


def _resolved_early(transform: Transform, source: Source) -> Transform:
    """The transform with what is known of it without the weights; what cannot be done is refused."""
    if not isinstance(transform, Prune):
        return transform
    layers = stated_layers(read_config(source.folder))
    if layers is not None:
        transform.check_depth(layers, str(source.folder))
    if transform.trace is not None:
        return resolve_from_trace(transform, source.identity)
    if not transform.resolved:
        load_workload(transform.workload)
    return transform
