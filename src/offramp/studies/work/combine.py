"""Accelerations of one model alone and together, timed in turns."""

from __future__ import annotations

from offramp.records.typed import finite_json
from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import model_of, require_planned, require_this_machine, workload_of

OPTIONS = ("kv", "new_tokens", "rounds", "floor", "draft_length", "seed")
"""Of `offramp.decoding.measurement.combine.combine`, where the recipe has them."""


class CombineWork:
    """Leaves the measurement with every sample. Takes timings, so that it runs alone on the machine."""

    kind = "combine"

    def run(self, task: Task, context: Context) -> None:
        """Combine. Raises what `offramp.decoding.measurement.combine.combine` raises, OfframpError for inputs
        that are not the recipe's.
        """
        from offramp.decoding.measurement.combine import combine
        from offramp.decoding.measurement.prompts import prompts_of

        require_planned(task)
        require_this_machine(task, task.recipe["machine"])
        recipe = task.recipe
        workload = workload_of(task)
        model = model_of(task, context)
        prompts = prompts_of(model, workload, recipe["prompts"], new_tokens=recipe["new_tokens"])
        result = combine(
            model,
            recipe["accelerations"],
            prompts=prompts,
            policy=recipe.get("policy"),
            budget_seconds=recipe.get("seconds"),
            workload=workload.name,
            **{name: recipe[name] for name in OPTIONS if name in recipe},
        )
        context.write_result(finite_json({"combined": result}))
