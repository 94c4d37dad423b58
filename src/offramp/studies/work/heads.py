"""Fitted exit heads of a model, or a file of them that the study names."""

from __future__ import annotations

from pathlib import Path

from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import HEADS, checked_workload, model_of, require_planned, require_same
from offramp.studies.work.training_cost import TRAINING, TRAINING_COST, cost_of


class HeadsWork:
    """Leaves `heads.safetensors`, which `offramp trace --heads` reads too, and what trained exits took."""

    kind = "heads"

    def run(self, task: Task, context: Context) -> None:
        """Fit, or copy. Raises what `offramp.tracing.fitting.fit.fit_heads` and `read_heads` raise, and
        OfframpError for inputs that are not the recipe's.
        """
        from offramp.tracing.fitting.fit import fit_heads
        from offramp.tracing.heads_file import read_heads, write_heads

        require_planned(task)
        recipe, target = task.recipe, context.folder / HEADS
        if recipe.get("file") is not None:
            heads = read_heads(task.sources["heads"])
            require_same("the file of exit heads", task.sources["heads"], heads.fingerprint, recipe["file"])
            write_heads(heads, target)
            _keep_cost(Path(task.sources["heads"]), heads.fingerprint, context.folder)
            return
        workloads = [
            checked_workload(task.sources[f"workload {place}"], one)
            for place, one in enumerate(recipe["workloads"])
        ]
        fitted = fit_heads(
            model_of(task, context),
            workloads,
            tokens=recipe["tokens"],
            exits=recipe["exits"],
            lens=recipe["lens"],
            classifiers=recipe["classifiers"],
            seed=recipe["seed"],
            progress=context.progress,
        )
        write_heads(fitted, target)


def _keep_cost(file: Path, fingerprint: str, folder: Path) -> None:
    """What the trainings of these exits took, if all of them left a record."""
    from offramp.lab.exits.earlier import record_of

    record = record_of(file, fingerprint)
    cost = None if record is None else cost_of(record)
    if cost is not None:
        TRAINING_COST.write(folder / TRAINING, cost)
