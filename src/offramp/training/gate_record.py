"""The record of a training of gates: what they were trained on and for, what they save, what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from offramp.kit.sealed_file import SealedFile
from offramp.training.gate_judging import Judged
from offramp.training.gate_request import GateTraining
from offramp.training.record import Spent


@dataclass(frozen=True)
class GateRecord:
    """What gates were trained on and for, and what they save beside the best thresholds of the same features.

    exits: of the gates. rows: tokens to learn from, to choose by and to judge on. multiplier, seconds,
    disagreement: as in `GateFit`. gate: with one threshold of 0.5. thresholds: the fastest of NETWORK's,
    alike or one per exit, on any set of the exits. Both are chosen on the same documents and judged on
    held-out ones. plain: seconds of a token of the full model. tokens: that were read. took: seconds of
    reading the exits (with the model's answers, if it wrote any), and of training. earlier: what the
    trainings took of the exits that got the gates, None if that is not known.
    """

    exits: tuple[int, ...]
    machine: str
    floor: float
    kv: str
    seed: int
    rows: tuple[int, int, int]
    multiplier: float
    seconds: tuple[float, ...]
    disagreement: tuple[float, ...]
    gate: Judged
    thresholds: Judged
    plain: float
    tokens: int
    steps: int
    took: tuple[float, float]
    heads: str
    earlier: Spent | None

    kind: ClassVar[str] = GateTraining.kind

    @property
    def own(self) -> Spent:
        """What this training took."""
        return Spent(sum(self.took), self.tokens)


GATE_RECORD = SealedFile(
    GateRecord,
    what="the record {name} of a training of gates is damaged",
    fix="train them again into another folder",
    version=2,
    kind="gate training",
)
