"""What the readers of a kept plan take from its study: the types that it must have, whoever sealed it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class PlannedSettings:
    """The table [study]."""

    name: str
    title: str
    description: str
    floors: tuple[float, ...]
    tokens: int
    dtype: str
    threads: int
    seed: int
    draws: int


@dataclass(frozen=True)
class DescribedModel:
    """A model as a study's file describes it; None where it does not."""

    name: str
    base: str
    """The independent training it comes from; its variants have the same."""
    family: str | None = None
    generation: float | None = None
    """A number within its family."""
    released: str | None = None
    """ "2024-04"."""
    parameters: float | None = None
    """In all."""
    kind: str | None = None
    """ "dense", "moe", "ssm" or "hybrid"."""
    stage: str | None = None
    """ "base" or "tuned"."""


@dataclass(frozen=True)
class PlannedModel(DescribedModel):
    """A model, with the sizes that its weights have."""

    layers: int | None = None
    hidden: int | None = None
    vocabulary: int | None = None


@dataclass(frozen=True)
class PlannedEntry:
    """An entry of another axis. documents: of a workload, None if it is not here."""

    name: str
    source: str = ""
    documents: int | None = None


@dataclass(frozen=True)
class PlannedStage:
    """Certifying or decoding. seconds: that it is given."""

    seconds: float | None


@dataclass(frozen=True)
class PlannedFile:
    """The study's file, as it was."""

    path: str
    sha256: str


@dataclass(frozen=True)
class PlannedStudy:
    """A study as its plan keeps it."""

    study: PlannedSettings
    models: tuple[PlannedModel, ...]
    workloads: tuple[PlannedEntry, ...]
    transforms: tuple[PlannedEntry, ...]
    machines: tuple[PlannedEntry, ...]
    certify: PlannedStage | None = None
    decode: PlannedStage | None = None
    large: Mapping[str, Any] | None = None
    """How layers that stay on disk are traced, None where models are in memory."""
    file: PlannedFile | None = None
