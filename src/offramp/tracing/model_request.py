"""A model that was asked for: found and checked, loaded once all else fits, whole or layer by layer."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from offramp.errors import InputError, ModelError
from offramp.models.identity import ModelIdentity, shown_name
from offramp.models.memory_size import shown_size

if TYPE_CHECKING:
    from offramp.models.model import Model
    from offramp.models.source import Source
    from offramp.models.transforms.transform import Transform
    from offramp.tracing.exit_heads import ExitHeads
    from offramp.workloads.workload import Workload


@dataclass(frozen=True)
class ModelRequest:
    """A model's files and what is to be done to it; no weight is loaded yet."""

    source: Source
    transforms: tuple[Transform, ...]
    dtype: str
    trust_remote_code: bool

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

    def require_heads(self, heads: ExitHeads, where: str) -> None:
        """Refuse exit heads of another model, as far as it is known which one this will be.

        Raises InputError that names both.
        """
        from offramp.tracing.heads_file import require_base

        if self.identity is not None:
            require_base(heads, {"name": self.source.name, **self.identity.to_json()}, where)

    def load(self) -> Model:
        """The model, checked and transformed. Raises ModelError or InputError for what does not fit."""
        from offramp.tracing.loading import load_transformed

        return load_transformed(
            self.source,
            dtype=self.dtype,
            transforms=self.transforms,
            trust_remote_code=self.trust_remote_code,
        )


def read_transforms(texts: Sequence[str] | None, dtype: str) -> tuple[Transform, ...]:
    """The transforms of `--transform`, refused here, before any model is looked at, if they cannot be used.

    dtype: that the model will be loaded in.

    Raises InputError for a text that is none, a transform given twice, or one that this machine cannot do.
    """
    if not texts:
        return ()
    from offramp.models.transforms.grammar import parse_transforms

    transforms = parse_transforms(texts)
    for transform in transforms:
        transform.check(dtype)
    return transforms


def find_model(
    name: str, transforms: Sequence[Transform], *, dtype: str, trust_remote_code: bool
) -> ModelRequest:
    """A model's files, checked as far as possible without loading a weight. Raises ModelError."""
    from offramp.models.loading import find_source

    source = find_source(name, trust_remote_code=trust_remote_code)
    return ModelRequest(source, tuple(transforms), dtype, trust_remote_code)


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
    if memory is not None and stream is False:
        raise InputError(
            "--memory says how much of a model's weights may be in memory, --no-stream that all of them are",
            where="--memory",
            fix="leave out one of them",
        )
    if _is_pruned(asked) and (stream or memory is not None):
        raise InputError(
            "a model is pruned as a whole, so its layers cannot stay on disk",
            where=", ".join(asked.texts),
            fix="leave out the pruning, or --stream and --memory",
        )
    if stream is False or not (stream or _exceeds(asked, memory)):
        return asked.load()
    if _is_pruned(asked):
        raise InputError(
            "a model is pruned as a whole, and its weights do not fit in the memory that is free",
            where=asked.name,
            fix="free some memory, leave out the pruning, or try all the same with --no-stream",
        )
    from offramp.models.streaming.loading import load_streamed, needed_memory
    from offramp.tracing.streamed.layers import require_given_text

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
        model = _transformed(model, transform)
    return model


def _transformed(model: Model, transform: Transform) -> Model:
    """A model whose layers stay on disk with a transform applied."""
    transformed = transform.apply(model)
    if transformed.streamed is model.streamed:
        # What it did to the layers in memory, which have no weights, is lost when they are read.
        raise ModelError(
            f"{transform.text} cannot be applied to layers that stay on disk",
            where=model.shown_name,
            fix="use --no-stream, on a machine with enough memory",
        )
    return transformed


def _exceeds(asked: ModelRequest, memory: int | None) -> bool:
    """Whether the weights are more than a budget in bytes, or than fits if that is None."""
    from offramp.models.streaming.loading import weight_bytes, would_not_fit

    if memory is None:
        return would_not_fit(asked.source, asked.dtype)
    return weight_bytes(asked.source, asked.dtype) > memory


def _is_pruned(asked: ModelRequest) -> bool:
    """Whether layers are dropped, which changes the list that layers are read into."""
    from offramp.models.transforms.prune import Prune

    return any(isinstance(transform, Prune) for transform in asked.transforms)
