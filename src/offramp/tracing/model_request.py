"""A model that was asked for: found and checked, not loaded before all else fits."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from offramp.models.identity import ModelIdentity, shown_name

if TYPE_CHECKING:
    from offramp.models.model import Model
    from offramp.models.source import Source
    from offramp.models.transforms.transform import Transform
    from offramp.tracing.exit_heads import ExitHeads


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
        from offramp.tracing.transformed import load_transformed

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
