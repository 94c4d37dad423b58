"""Endpoints of a model that a study trained, or that was given."""

from __future__ import annotations

from offramp.models.memory import use_threads
from offramp.records.typed import to_json
from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import device_of, model_of, require_planned
from offramp.studies.work.text import text_of
from offramp.studies.work.train import model_folder


class MeasureWork:
    """Leaves the endpoints that are asked for, of one model, on the report part of a text."""

    kind = "measure"

    def run(self, task: Task, context: Context) -> None:
        """Measure. Raises what `offramp.lab.endpoints.measure.measure` raises, and OfframpError."""
        from offramp.lab.endpoints.measure import measure

        require_planned(task)
        use_threads(task.recipe["threads"])
        given = "model" in task.recipe
        found = measure(
            model_of(task, context) if given else model_folder(context.input("model"), task.recipe["step"]),
            text_of(task),
            endpoints=task.recipe["endpoints"],
            seed=task.recipe["seed"],
            device=device_of(task),
        )
        # What it took is no result: the journal has it.
        context.write_record({key: value for key, value in to_json(found).items() if key != "seconds"})
