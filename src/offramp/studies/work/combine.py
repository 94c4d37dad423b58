"""Accelerations of one model alone and together, timed in turns."""

from __future__ import annotations

from offramp.kit.typed import finite_json
from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import model_of, require_planned, require_this_machine, workload_of

DECODING, FURTHER = ("kv", "draft_length", "new_tokens"), ("floor", "seed")
"""Of `DecodingOptions.read` and of `combine`, where the recipe has them."""


class CombineWork:
    """Leaves the measurement with every sample. Takes timings, so that it runs alone on the machine."""

    kind = "combine"

    def run(self, task: Task, context: Context) -> None:
        """Combine. Raises what `offramp.decoding.measurement.combine.combine` raises, OfframpError for inputs
        that are not the recipe's.
        """
        from offramp.decoding.measurement.answers import Limits
        from offramp.decoding.measurement.combine import combine
        from offramp.decoding.openings import prompts_of
        from offramp.decoding.options import DecodingOptions

        require_planned(task)
        require_this_machine(task, task.recipe["machine"])
        recipe = task.recipe
        workload = workload_of(task)
        model = model_of(task, context)
        prompts = prompts_of(model, workload, recipe["prompts"], new_tokens=recipe["new_tokens"])
        result = combine(
            model,
            recipe["accelerations"],
            DecodingOptions.read(
                recipe.get("policy"), **{name: recipe[name] for name in DECODING if name in recipe}
            ),
            prompts=prompts,
            limits=Limits(recipe.get("seconds"), recipe.get("rounds")),
            workload=workload.name,
            **{name: recipe[name] for name in FURTHER if name in recipe},
        )
        context.write_result(finite_json({"combined": result}))
