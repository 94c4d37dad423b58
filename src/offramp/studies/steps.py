"""What is done to a study's models: the transforms of its texts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from offramp.errors import InputError
from offramp.kit.given_file import did_you_mean
from offramp.kit.toml_lines import Location
from offramp.models.transforms.prune import Prune
from offramp.models.transforms.transform import TRANSFORMS, Transform, parse_transform, parse_transforms
from offramp.studies.entries import Combine, TransformEntry
from offramp.timing.accelerations import DECODERS

if TYPE_CHECKING:
    from offramp.studies.study import Study


def steps_of(entry: TransformEntry) -> tuple[Transform, ...]:
    """The transforms of an entry, in order. Raises InputError for a text that is none, or one given twice."""
    return parse_transforms(entry.steps)


def layers_left(layers: int, steps: Iterable[Transform], model: str) -> int:
    """How many layers a model keeps. Raises InputError for layers that it does not have, or all of them."""
    for step in steps:
        if isinstance(step, Prune):
            step.check_depth(layers, model)
            layers -= step.count
    return layers


def accelerations_of(combine: Combine) -> tuple[str | Transform, ...]:
    """What is combined: ways to decode by name, and transforms.

    Raises InputError for one that is unknown or given twice.
    """
    found = tuple(text if text in DECODERS else _acceleration(text) for text in combine.accelerations)
    texts = [text_of(one) for one in found]
    for place, text in enumerate(texts):
        if text in texts[:place]:
            raise InputError(f"{text} is given twice", fix="give it once")
    return found


def text_of(acceleration: str | Transform) -> str:
    """As it is asked for."""
    return acceleration if isinstance(acceleration, str) else acceleration.text


def combined_steps(combine: Combine) -> tuple[Transform, ...]:
    """The transforms among what is combined."""
    return tuple(one for one in accelerations_of(combine) if not isinstance(one, str))


def all_steps(study: Study) -> Iterator[tuple[Transform, Location]]:
    """Every transform that a study names, with its place in the file."""
    for place, entry in enumerate(study.transforms):
        for step in steps_of(entry):
            yield step, ("transforms", place)
    if study.combine is not None:
        for step in combined_steps(study.combine):
            yield step, ("combine", "accelerations")


def _acceleration(text: str) -> Transform:
    kind = text.partition(":")[0]
    if kind not in TRANSFORMS:
        raise InputError(f"unknown acceleration {text!r}", fix=did_you_mean(kind, (*DECODERS, *TRANSFORMS)))
    return parse_transform(text)
