"""The tuner's answers on a trace: per floor the fastest policy that keeps it in replay."""

from __future__ import annotations

from offramp.records.typed import finite_json
from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import machine_of, require_planned, trace_of


class TuneWork:
    """Leaves the tuner's replay bounds, and each as a file that `offramp predict` and `generate` read.

    Needs no model. A trace of too few documents gives the full model and the reason, as the tuner does.
    """

    kind = "tune"

    def run(self, task: Task, context: Context) -> None:
        """Tune per floor. Raises what `offramp.tune` raises, OfframpError for another machine."""
        from offramp.tuning.tune import tune
        from offramp.tuning.tuned import to_json, write_tuned

        require_planned(task)
        trace, machine = trace_of(context), machine_of(task, context)
        if len(trace.exits) < 2:
            why = "the trace holds no exit before the last: there is no policy to tune"
            context.write_result({"tuned": [], "why_empty": why})
            return
        answers = []
        for floor in task.recipe["floors"]:
            tuned = tune(trace, {"agreement": floor}, machine, seed=task.recipe["seed"])
            write_tuned(context.folder / f"tuned-{floor:g}.json", tuned)
            answers.append(to_json(tuned))
        context.write_result(finite_json({"tuned": answers, "why_empty": None}))
