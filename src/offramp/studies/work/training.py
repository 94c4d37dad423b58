"""Exits that a study trains, and what that took."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from offramp.defaults import SHORTLIST, TRAINING_MINUTES, TRAINING_ROWS
from offramp.errors import DamagedFileError, InputError
from offramp.files import remove
from offramp.kit.numbers import Whole
from offramp.studies.work.heads import RESULT_BYTES, TRAINING, TRAINING_COST, TextsWork, cost_of
from offramp.studies.work.inputs import EXITS
from offramp.studies.work.work import WorkContext
from offramp.training.request import Effort

if TYPE_CHECKING:
    from offramp.studies.task import TaskCost
    from offramp.studies.task_costs import Sizes
    from offramp.training.train import TrainedExits

Trained = TypeVar("Trained")

OPTIONS = (
    *("at", "minutes", "steps", "tokens", "seed"),
    *("units", "loss_vocabulary", "short_list", "precision"),
)
"""Of `offramp.train_exits`."""
EVALUATED_SHARE = 0.3
"""What evaluations take beside steps."""


@dataclass(frozen=True, kw_only=True)
class TrainingWork(Effort, TextsWork[None]):
    """Leaves `exits/`, which every command takes as `--heads` and a later try goes on with, and what training
    took. Minutes become steps by the clock, and seconds are what it costs: it runs alone.
    """

    kind = "training"
    exclusive = True

    exit_kind: str
    """As of `kind` of `offramp.train_exits`; so is the rest."""
    at: str | tuple[Whole, ...]
    units: Whole | None = None
    short_list: Whole = SHORTLIST

    def cost(self, sizes: Sizes) -> TaskCost:
        """The text through all layers, the steps, then classifiers and K,V maps on it.

        A step takes the target's logits, at each exit the logits and their gradient by the state, and three
        times the products of what is trained there.
        """
        reading, exits = sizes.forwards(self.tokens, 0), (sizes.exits or 1) - 1
        if reading is None or sizes.hidden is None or sizes.head is None:
            return sizes.on_model(None)
        hidden, seconds = sizes.hidden, 60.0 * (self.minutes or TRAINING_MINUTES)  # minutes are of all of it
        lens = hidden * hidden
        block = 3 * hidden * (self.units or round(8 / 3 * hidden)) if self.exit_kind == "block" else 0
        answered = 0.0
        if self.steps is not None:
            looked_at = min(sizes.head, self.loss_vocabulary * hidden or sizes.head)
            products = looked_at * (1 + 2 * exits) + 3 * (lens + block) * exits
            step = 2.0 * TRAINING_ROWS * products / sizes.flops_per_second
            seconds, answered = (1.0 + EVALUATED_SHARE) * self.steps * step + 2 * reading, self.answered
        weights = 4 * (lens + block) * exits
        return sizes.on_model(
            seconds,
            answered=answered,
            more_memory=4 * weights + 32 * lens * exits,  # moments and the best; sums of the ridge start
            disk_bytes=weights + RESULT_BYTES,
        )

    def run(self, context: WorkContext) -> None:
        """Train, or go on with what a killed try left. Raises what `offramp.train_exits` raises, and
        OfframpError for inputs that are not the recipe's.
        """
        record = gone_on_with(context.folder / EXITS, self.training(context)).record
        cost = cost_of(record, record.steps * record.request.recipe.batch)
        if cost is not None:  # of a trained model without its record nothing is known
            TRAINING_COST.write(context.folder / TRAINING, cost)

    def training(self, context: WorkContext) -> Callable[[], TrainedExits]:
        """The training in the task's folder, to be called."""
        from offramp.training.train import train_exits

        return functools.partial(
            train_exits,
            self.load_model(context),
            self.load_workloads(),
            kind=self.exit_kind,
            output=context.folder / EXITS,
            progress=context.progress,
            **{name: getattr(self, name) for name in OPTIONS},
        )


def gone_on_with(folder: Path, train: Callable[[], Trained]) -> Trained:
    """What training in a folder gives. What an earlier try left there, or in folders beside it whose names
    begin with its own, is gone on with if it is whole and of this training, else it is made anew: all of it
    is the task's alone.

    Raises what `train` raises where nothing was left, and InputError for what another process writes into.
    """
    from offramp.training.folder import TRAINING_FOLDER

    left_over = [*folder.parent.glob(f"{folder.name}*")]
    try:
        return train()
    except (InputError, DamagedFileError):
        if not left_over:
            raise
        # Refused where it is whole and in the hands of another process.
        with TRAINING_FOLDER.held(folder) if folder.is_dir() else contextlib.nullcontext():
            for path in left_over:
                remove(path)
        return train()
