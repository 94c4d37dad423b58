"""Exit heads of a model: fitted, or a file of them that the study names; and what training them took."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.defaults import SEED
from offramp.kit.numbers import Layers, NotNegative, Whole
from offramp.studies.task import study_file
from offramp.studies.work.inputs import HEADS, ModelWork, TextUsed
from offramp.studies.work.work import Result, WorkContext, require_same
from offramp.workloads.workload import Workload

if TYPE_CHECKING:
    from offramp.studies.task import TaskCost
    from offramp.studies.task_costs import Sizes
    from offramp.training.record import GateRecord, TrainingRecord

TRAINING = "training.json"
RESULT_BYTES = 50_000
"""On disk, beside arrays."""


@dataclass(frozen=True)
class Training:
    """What training the exits took that a run or a row reads its exits through.

    seconds_before, tokens_before: of the latter.
    """

    kind: str
    exits: tuple[Layers, ...]
    tokens: Whole
    """That the last training read."""
    steps: Whole
    """That it took."""
    seconds: NotNegative
    """Of all of it: states, steps with their evaluations, what was fitted afterwards, and the trainings that
    it began from."""
    seconds_before: NotNegative = 0.0
    tokens_before: Whole = 0
    rows: Whole | None = None
    """Positions that a study's training looked at in all its steps, None where exits were there."""


TRAINING_COST = study_file(Training)


@dataclass(frozen=True, kw_only=True)
class TextsWork(ModelWork[Result]):
    """Work that reads some workloads with a model."""

    workloads: tuple[TextUsed, ...] = ()
    tokens: Whole
    """Of all of them together."""
    seed: Whole = SEED

    def load_workloads(self) -> list[Workload]:
        """The workloads. Raises as `TextUsed.load`."""
        return [text.load(self.sources[f"workload {place}"]) for place, text in enumerate(self.workloads)]

    @property
    def answered(self) -> float:
        """Tokens that the model writes itself first."""
        return self.tokens * sum(text.answered for text in self.workloads) / max(1, len(self.workloads))


@dataclass(frozen=True, kw_only=True)
class HeadsWork(TextsWork[None]):
    """Leaves `heads.safetensors`, which `offramp trace --heads` reads too, and what trained exits took.

    exits, lens, classifiers: as of `offramp.fit_heads`.
    """

    kind = "heads"

    exits: str | tuple[Whole, ...] = "all"
    lens: bool = True
    classifiers: tuple[str, ...] = ()
    file: str | None = None
    """Fingerprint of the heads that are copied; None of heads that are fitted."""

    @property
    def loads(self) -> bool:
        """Whether they are fitted."""
        return self.file is None

    def cost(self, sizes: Sizes) -> TaskCost:
        """Tokens through all layers; a lens solves a system of its hidden size at every exit."""
        if not self.loads:
            return sizes.copying()
        square = (sizes.hidden or 0) ** 2 * (sizes.exits or 0) if self.lens else 0
        return sizes.on_model(
            sizes.forwards(self.tokens, sizes.exits if self.classifiers else 1),
            answered=self.answered,
            more_memory=32 * square,
            disk_bytes=4 * square + RESULT_BYTES,
        )

    def run(self, context: WorkContext) -> None:
        """Fit, or copy. Raises what `offramp.tracing.fitting.fit.fit_heads` and `read_heads` raise, and
        OfframpError for inputs that are not the recipe's.
        """
        from offramp.heads.file import read_heads, write_heads
        from offramp.tracing.fitting.fit import fit_heads

        target = context.folder / HEADS
        if self.file is not None:
            source = self.sources["heads"]
            heads = read_heads(source)
            require_same("the file of exit heads", source, heads.fingerprint, self.file)
            write_heads(heads, target)
            keep_cost(Path(source), heads.fingerprint, context.folder)
            return
        fitted = fit_heads(
            self.load_model(context),
            self.load_workloads(),
            tokens=self.tokens,
            exits=self.exits if isinstance(self.exits, str) else list(self.exits),
            lens=self.lens,
            classifiers=list(self.classifiers),
            seed=self.seed,
            progress=context.progress,
        )
        write_heads(fitted, target)


def keep_cost(file: Path, fingerprint: str, folder: Path) -> None:
    """What the trainings of these exits took, if all of them left a record."""
    from offramp.training.record import record_of

    record = record_of(file, fingerprint)
    cost = None if record is None else cost_of(record)
    if cost is not None:
        TRAINING_COST.write(folder / TRAINING, cost)


def cost_of(record: TrainingRecord | GateRecord, rows: int | None = None) -> Training | None:
    """What a training took by its record, with all that it began from; None if part of that is not known."""
    from offramp.training.record import spent_on

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
