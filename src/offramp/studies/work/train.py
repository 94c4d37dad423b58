"""A small model that a study trains from scratch."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from offramp.models.memory import use_threads
from offramp.studies.manifest import DAMAGED
from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import device_of, require_same, require_versions
from offramp.studies.work.left_over import gone_on_with
from offramp.studies.work.text import text_of

if TYPE_CHECKING:
    from offramp.lab.training.record import TrainingRecord

MODEL = "model"
"""The folder of the model in its task's folder; those of earlier steps lie beside it, model@STEP."""


class TrainWork:
    """Leaves `model/`, an ordinary model folder, and those of earlier steps. A loss that is not finite ends a
    training, which is kept and marked; a killed one is gone on with.
    """

    kind = "train"

    def run(self, task: Task, context: Context) -> None:
        """Train. Raises what `offramp.lab.training.train.train` raises, and OfframpError for other code."""
        from offramp.lab.training.code import training_code

        code = training_code(task.recipe["kind"])
        require_same("the code of training", task.kind, code, task.recipe["code"])
        require_versions(task)
        use_threads(task.recipe["threads"])
        record = gone_on_with(context.folder / MODEL, _training(task, context))
        context.write_record(
            {
                "parameters": record.parameters,
                "products": record.products,
                "step": record.step,
                "diverged": record.diverged,
                "stopped": record.stopped,
                "model": record.model,
                "kept": [
                    {"step": one.step, "tokens": one.tokens, "loss": one.natural} for one in record.history
                ],
            }
        )


def _training(task: Task, context: Context) -> Callable[[], TrainingRecord]:
    """The training of a task in its folder, to be called."""
    from offramp.lab.training.recipe import KINDS, ContinuedRecipe
    from offramp.lab.training.train import train

    values: dict[str, Any] = {**task.recipe["recipe"], "text": str(text_of(task).folder)}
    if "base" in task.needs:
        values["base"] = str(context.input("base") / MODEL)
    return functools.partial(
        train,
        {**KINDS, "continued": ContinuedRecipe}[task.recipe["kind"]].model_validate(values),
        context.folder / MODEL,
        device=device_of(task),
        # A finished one of which a file was found damaged is not whole, whatever its record says.
        overwrite=(context.folder / DAMAGED).exists(),
        shown=context.progress,
    )


def model_folder(train_folder: Path, step: int | None) -> Path:
    """Of the model after a step in the folder of a finished training; None: of the last."""
    return train_folder / (MODEL if step is None else f"{MODEL}@{step}")
