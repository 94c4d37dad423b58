"""Which documents a model folder of `offramp exits train --kind regularised` was trained on."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from offramp.tracing.exits_folder import TRAINING_FILE
from offramp.workloads.shared_text import Sketch, read_sketch

if TYPE_CHECKING:
    from offramp.models.model import Model

TRAINED_ON = "trained_on"
"""Of the model in a trace's request: ids of these documents by workload fingerprint, if there are any."""


@dataclass(frozen=True)
class TrainedOn:
    """Ids of the documents by workload fingerprint, and sketches of their texts."""

    documents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    texts: tuple[Sketch, ...] = ()

    @property
    def described(self) -> dict[str, Any]:
        """What a trace's request says of it: nothing of a model that was trained on none that are known."""
        if not self.documents:
            return {}
        return {TRAINED_ON: {workload: list(ids) for workload, ids in self.documents.items()}}


def trained_on(model: Model) -> TrainedOn:
    """What the record in the model's folder says; nothing where there is none."""
    path = None if model.source is None else model.source.folder / TRAINING_FILE
    if path is None or not path.is_file():
        return TrainedOn()
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        documents, texts = record["documents"], record["texts"]
        return TrainedOn(
            {str(workload): tuple(ids) for workload, ids in documents.items()},
            tuple(read_sketch(text) for text in texts),
        )
    except (ValueError, KeyError, TypeError, AttributeError):  # another program's file of this name
        return TrainedOn()
