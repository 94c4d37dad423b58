"""What training exits took, beside the exits that a study's rows are read through."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from offramp.studies.manifest import study_file

if TYPE_CHECKING:
    from offramp.lab.exits.gate_record import GateRecord
    from offramp.lab.exits.record import TrainingRecord

TRAINING = "training.json"


@dataclass(frozen=True)
class Training:
    """What training the exits took that a run or a row reads its exits through.

    tokens: that the last training read. steps: that it took. seconds: of all of it: states, steps with their
    evaluations, what was fitted afterwards, and the trainings that it began from. seconds_before,
    tokens_before: of the latter. rows: positions that a study's training looked at in all its steps, None
    where exits were there.
    """

    kind: str
    exits: tuple[int, ...]
    tokens: int
    steps: int
    seconds: float
    seconds_before: float = 0.0
    tokens_before: int = 0
    rows: int | None = None


TRAINING_COST = study_file(Training)


def cost_of(record: TrainingRecord | GateRecord, rows: int | None = None) -> Training | None:
    """What a training took by its record, with all that it began from; None if part of that is not known."""
    from offramp.lab.exits.earlier import spent_on

    spent = spent_on(record)
    if record.earlier is None or spent is None:
        return None
    return Training(
        kind=record.kind,
        exits=record.exits,
        tokens=record.own.tokens,
        steps=record.steps,
        seconds=spent.seconds,
        seconds_before=record.earlier.seconds,
        tokens_before=record.earlier.tokens,
        rows=rows,
    )
