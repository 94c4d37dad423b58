"""A model of a study with what is done to it."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.models.transforms.transform import Transform
from offramp.studies.entries import TransformEntry
from offramp.studies.estimates import Sizes
from offramp.studies.found import FoundModel


@dataclass(frozen=True)
class Variant:
    """A model with what is done to it."""

    model: FoundModel
    transform: TransformEntry
    steps: tuple[Transform, ...]
    sizes: Sizes

    @property
    def texts(self) -> list[str]:
        """The transforms as canonical texts."""
        return [step.text for step in self.steps]

    @property
    def name(self) -> str:
        """As shown: "smollm2 + int8"."""
        label = self.transform.label
        return f"{self.model.entry.name} + {label}" if label else self.model.entry.name
