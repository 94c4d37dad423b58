"""One training in its folder, of any kind: what it is called, how it is gone on with, what it leaves."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from offramp.files import canonical_json, sha256_of_text
from offramp.heads.exit_heads import ExitHeads
from offramp.heads.file import EXITS_FILE, TRAINING_FILE, write_heads
from offramp.kit.typed import to_json
from offramp.models.model import Model
from offramp.tracing.fitting.documents import FittingRows, plan_rows, split_documents
from offramp.tracing.progress import say, step_bar
from offramp.tracing.request import library_versions
from offramp.training.checkpoint import Progress
from offramp.training.folder import CHECKPOINT
from offramp.training.recipe import Recipe
from offramp.training.record import RECORD, Spent, TrainingIdentity, TrainingRecord
from offramp.training.steps import Objective
from offramp.training.trainer import Beside, OnStep, Trainer
from offramp.workloads.packing import Context
from offramp.workloads.workload import Workload

HELD_OUT_EVERY = 6
"""One document of so many is held out from training."""


@dataclass(frozen=True)
class Job(abc.ABC):
    """One training in its folder.

    start: the heads that it starts from, None for those that need none. earlier: what their training took.
    """

    model: Model
    workloads: tuple[Workload, ...]
    request: TrainingIdentity
    folder: Path
    shown: bool
    on_size: Callable[[int], object] | None
    start: ExitHeads | None = None
    earlier: Spent | None = field(default_factory=Spent)

    @abc.abstractmethod
    def run(self) -> tuple[ExitHeads | None, TrainingRecord]:
        """Train, or go on to the end; write what came of it, and the record last.

        The heads are None where the model itself was trained.
        """

    @property
    def recipe(self) -> Recipe:
        """How it trains."""
        return self.request.recipe

    @property
    def title(self) -> str:
        """In words, for progress bars."""
        return f"{self.model.name}: {self.recipe.kind} at {','.join(map(str, self.recipe.at))}"

    def plan(self, shares: Sequence[float] = (1.0,), tokens: int | None = None) -> FittingRows:
        """Sequences to train on, and held-out ones, of the last part of the documents that are for it.

        tokens: to read, all that are asked for if not given.
        """
        recipe = self.recipe
        return plan_rows(
            self.model,
            [(work, split_documents(work, shares, recipe.seed)[-1]) for work in self.workloads],
            recipe.tokens if tokens is None else tokens,
            context=recipe.context,
            shown=self.shown,
            held_out_every=HELD_OUT_EVERY,
            folder=self.folder,
        )

    def key(self, rows: FittingRows, layers: Sequence[int]) -> str:
        """Of the rows and layers that are read, and of all else that decides what is trained."""
        contexts = [
            (one.document, one.start, one.first_row, one.ids, one.next_token, one.generated)
            for one in rows.contexts
        ]
        asked = to_json(replace(self.request, recipe=replace(self.recipe, minutes=None)))
        parts = (asked, contexts, rows.held_out.tolist(), layers, library_versions())
        return sha256_of_text(canonical_json(parts))

    def train(self, objective: Objective, key: str, beside: Beside) -> Progress:
        """Train to the end, with a progress bar."""
        trainer = Trainer(self.model, self.recipe, objective, self.folder / CHECKPOINT, key, beside)
        with contextlib.ExitStack() as bars:
            progress = trainer.run(lambda found: self._bar(bars, found))
        if self.shown:
            say(f"{self.title}: {progress.stopped}; {objective.in_words(progress.history[-1].exits)}")
        return progress

    def _bar(self, bars: contextlib.ExitStack, found: Progress) -> OnStep:
        bar = step_bar(self.title, found.settings.steps, shown=self.shown, done=found.step)
        return bars.enter_context(bar)

    def provenance(self, progress: Progress) -> dict[str, Any]:
        """What heads say of it: nothing that depends on how long anything took."""
        return {
            **to_json(replace(self.recipe, minutes=None, steps=progress.settings.steps)),
            "precision": progress.settings.precision,
            "steps_taken": progress.step,
            "stopped": progress.stopped,
        }

    def write(self, heads: ExitHeads, record: TrainingRecord) -> None:
        """Write both, the record last."""
        write_heads(heads, self.folder / EXITS_FILE)
        RECORD.write(self.folder / TRAINING_FILE, record)


def sides(rows: FittingRows) -> tuple[list[Context], list[Context]]:
    """The sequences to train on, and those of held-out documents."""
    apart = [bool(rows.held_out[one.document]) for one in rows.contexts]
    fit, held_out = (
        [one for one, held in zip(rows.contexts, apart, strict=True) if held is side]
        for side in (False, True)
    )
    return fit, held_out
