"""Fitted exit heads of a model, or a file of them that the study names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from offramp.studies.manifest import study_file
from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import HEADS, checked_workload, model_of, require_planned, require_same

TRAINING = "training.json"


@dataclass(frozen=True)
class Training:
    """What training the exits took that a run reads its exits through.

    tokens: that the last training read. seconds: of all of it: states, steps with their evaluations, what was
    fitted afterwards, and the trainings that it began from. seconds_before, tokens_before: of the latter.
    """

    kind: str
    exits: tuple[int, ...]
    tokens: int
    steps: int
    seconds: float
    seconds_before: float = 0.0
    tokens_before: int = 0


TRAINING_COST = study_file(Training)


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
    from offramp.lab.exits.earlier import record_of, spent_on

    record = record_of(file, fingerprint)
    spent = None if record is None else spent_on(record)
    if record is None or record.earlier is None or spent is None:
        return
    cost = Training(
        kind=record.kind,
        exits=record.exits,
        tokens=record.own.tokens,
        steps=record.steps,
        seconds=spent.seconds,
        seconds_before=record.earlier.seconds,
        tokens_before=record.earlier.tokens,
    )
    TRAINING_COST.write(folder / TRAINING, cost)
