"""Exits that a study trains, and what that took."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import EXITS, checked_workload, model_of, require_planned
from offramp.studies.work.left_over import gone_on_with
from offramp.studies.work.training_cost import TRAINING, TRAINING_COST, cost_of

if TYPE_CHECKING:
    from offramp.lab.exits.train import TrainedExits


class TrainingWork:
    """Leaves `exits/`, which every command takes as `--heads` and a later try goes on with, and what training
    took. Minutes become steps by the clock, and seconds are what it costs: it runs alone.
    """

    kind = "training"

    def run(self, task: Task, context: Context) -> None:
        """Train, or go on with what a killed try left. Raises what `offramp.train_exits` raises, and
        OfframpError for inputs that are not the recipe's.
        """
        require_planned(task)
        folder = context.folder / EXITS
        record = gone_on_with(folder, _training(task, context, folder)).record
        cost = cost_of(record, record.steps * record.request.recipe.batch)
        if cost is not None:  # of a trained model without its record nothing is known
            TRAINING_COST.write(context.folder / TRAINING, cost)


def _training(task: Task, context: Context, folder: Path) -> Callable[[], TrainedExits]:
    """The training of a task in a folder, to be called."""
    from offramp.lab.exits.train import train_exits

    recipe = task.recipe
    workloads = [
        checked_workload(task.sources[f"workload {place}"], one)
        for place, one in enumerate(recipe["workloads"])
    ]
    return functools.partial(
        train_exits,
        model_of(task, context),
        workloads,
        kind=recipe["kind"],
        at=recipe["at"],
        minutes=recipe["minutes"],
        steps=recipe["steps"],
        tokens=recipe["tokens"],
        seed=recipe["seed"],
        units=recipe["units"],
        loss_vocabulary=recipe["loss_vocabulary"],
        short_list=recipe["short_list"],
        precision=recipe["precision"],
        output=folder,
        progress=context.progress,
    )
