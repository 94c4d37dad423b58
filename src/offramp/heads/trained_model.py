"""What a model folder that offramp trained was before, if anything, and which documents it saw."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.errors import InputError
from offramp.heads.file import UNDER_WAY
from offramp.models.training_record import GATES, TRAINING_FILE, damaged_record, read_training
from offramp.workloads.shared_text import Sketch, read_sketch

if TYPE_CHECKING:
    from offramp.models.model import Model

TRAINED_ON = "trained_on"
"""Of the model in a trace's request: ids of these documents by workload fingerprint, if there are any."""


@dataclass(frozen=True)
class TrainedOn:
    """The documents that a training of the model saw, and what the model was before."""

    documents: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Their ids by workload fingerprint."""
    texts: tuple[Sketch, ...] = ()
    """Sketches of their texts."""
    original: str | None = None
    """Name of the model that it was before, None if that is not known."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What must be said of a trace that keeps no other model's choices."""
        if self.original is None:
            return ()
        return (
            f"the model was trained, from {self.original}: agreement here is with its own full depth, which "
            f"may have changed; traced with --reference {self.original}, and tuned with --floor "
            "reference_agreement=0.95, it is held against what it was before",
        )

    @property
    def described(self) -> dict[str, Any]:
        """What a trace's request says of it: nothing of a model that was trained on none that are known."""
        if not self.documents:
            return {}
        return {TRAINED_ON: {workload: list(ids) for workload, ids in self.documents.items()}}


def trained_on(model: Model) -> TrainedOn:
    """What the record in the model's folder says. Raises what `trained_in` raises."""
    return TrainedOn() if model.source is None else trained_in(model.source.folder)


def trained_in(folder: Path) -> TrainedOn:
    """What the record in a model's folder says; nothing where there is none, or another program's.

    Raises InputError for a training that has not ended, whose record comes last, and DamagedFileError for a
    record that was changed: certificates must not rest on text that was trained on.
    """
    record = read_training(folder)
    if record is None:
        if (folder / TRAINING_FILE).exists():  # another program's
            return TrainedOn()
        if any((folder / name).exists() for name in UNDER_WAY):
            raise InputError(
                f"the training of this model has not ended: {TRAINING_FILE} is missing",
                where=str(folder),
                fix="run again what trains it (offramp exits train): it goes on",
            )
        return TrainedOn()
    if record["kind"] == GATES:
        return TrainedOn()
    try:
        return TrainedOn(
            {str(workload): tuple(ids) for workload, ids in record["documents"].items()},
            tuple(read_sketch(text) for text in record.get("texts", ())),
            record.get("request", {}).get("model", {}).get("name"),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged_record(folder / TRAINING_FILE) from error
