"""What was fitted on documents of its own, or imported, as a page shows it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.heads.described import read_by, reading_parts
from offramp.heads.exit_heads import ExitHeads
from offramp.kit.numbers import Proportion, Whole


@dataclass(frozen=True)
class ClassifierQuality:
    """How well a classifier does on documents that fitting did not see.

    exits: that have one. better_than_chance: at how many of them it is. auroc: their median, None where it is
    undefined.
    """

    exits: Whole
    better_than_chance: Whole
    auroc: Proportion | None


@dataclass(frozen=True)
class HeadsSummary:
    """What was fitted on documents of its own, or imported: of several texts' the least that holds for each.

    reading: what exits are read through, in words, nothing where it is the model's own head. lens_explained:
    mean share of the last state's variance that a lens explains on held-out documents, None if not known.
    imported: whether others trained them.
    """

    documents: Whole
    exits: Whole
    reading: tuple[str, ...]
    lens_explained: float | None
    classifiers: Mapping[str, ClassifierQuality]
    imported: bool = False


def summarised_heads(several: Sequence[ExitHeads]) -> HeadsSummary | None:
    """What the page shows of fitted heads: of those of all texts the least that holds for each."""
    if not several:
        return None
    first = several[0]
    lenses = [heads.lens for heads in several if heads.lens is not None]
    explained = [lens.explained for lens in lenses if lens.explained is not None]
    return HeadsSummary(
        documents=sum(len(ids) for heads in several for ids in heads.seen_documents.values()),
        exits=len(first.exits),
        reading=tuple(reading_parts(read_by(first))),
        lens_explained=min((float(np.mean(shares)) for shares in explained), default=None),
        classifiers={name: _quality(several, name) for name in first.classifiers},
        imported="imported" in first.provenance,
    )


def _quality(several: Sequence[ExitHeads], name: str) -> ClassifierQuality:
    classifiers = [heads.classifiers[name] for heads in several]
    medians = (_median(classifier.auroc) for classifier in classifiers)
    return ClassifierQuality(
        exits=len(several[0].exits),
        better_than_chance=min(int(np.sum(classifier.better_than_chance)) for classifier in classifiers),
        auroc=min((median for median in medians if median is not None), default=None),
    )


def _median(values: NDArray[np.float64]) -> float | None:
    defined = values[np.isfinite(values)]
    return float(np.median(defined)) if defined.size else None
