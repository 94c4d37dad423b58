"""The tuner's answers on a trace, executed: per floor the fastest policy that was certified by decoding."""

from __future__ import annotations

from typing import TYPE_CHECKING

from offramp.errors import OfframpError
from offramp.files import canonical_json, sha256_of_text
from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import (
    heads_of,
    machine_of,
    model_of,
    profile_in,
    require_planned,
    require_this_machine,
    trace_of,
    workload_of,
)
from offramp.studies.work.league import why_not_halved
from offramp.studies.work.tune import Answers, write_answers

if TYPE_CHECKING:
    from offramp.costs.machine import Machine
    from offramp.tracing.trace import Trace
    from offramp.tuning.tuned import Tuned


class CertifyWork:
    """Leaves what `TuneWork` leaves; where nothing can be decoded the replay bounds, and why.

    What was decoded is kept for all tasks of the study. Ends by the clock, so that it runs alone.
    """

    kind = "certify"

    def run(self, task: Task, context: Context) -> None:
        """Tune at all floors together, the main one first: they share reruns and executions.

        Raises what `offramp.tune` raises, OfframpError for inputs that are not the recipe's.
        """
        from offramp.tuning.tune import tune

        require_planned(task)
        trace, machine, recipe = trace_of(context), machine_of(task, context), task.recipe
        if "profile" in task.needs:
            require_this_machine(task, profile_in(context.input("profile")).details["machine"])
        why = why_not_halved(trace, recipe["seed"])
        if why is not None:
            write_answers(context, Answers((), why))
            return
        refused = None
        try:
            found = _executed(task, context, trace, machine)
        except OfframpError as error:  # a family that is only traced, or prompts that are too few
            refused = error.what
            found = tuple(
                tune(trace, {"agreement": floor}, machine, delta=recipe["delta"], seed=recipe["seed"])
                for floor in recipe["floors"]
            )
        write_answers(context, Answers(found, None, refused))


def same_text(task: Task) -> str:
    """A name for what a task decodes: one process at a time writes into a folder."""
    parts = [task.recipe[name] for name in ("model", "workload", "dtype")]
    return sha256_of_text(canonical_json(parts))[:16]


def _executed(task: Task, context: Context, trace: Trace, machine: Machine | None) -> tuple[Tuned, ...]:
    from offramp.decoding.execution.tune import executed_tuner
    from offramp.tuning.executed import Limits
    from offramp.tuning.verdict import from_main

    recipe = task.recipe
    floors = sorted(recipe["floors"], key=lambda floor: (from_main(floor), floor))
    with executed_tuner(
        model_of(task, context),
        trace,
        machine,
        heads=heads_of(task, context),
        workload=workload_of(task),
        new_tokens=recipe["new_tokens"],
        folder=context.executions / same_text(task),
        delta=recipe["delta"],
        seed=recipe["seed"],
    ) as tune_for:
        limits = Limits(recipe["documents"], recipe["seconds"], recipe["candidates"], worth=recipe["worth"])
        found = tune_for([{"agreement": floor} for floor in floors], limits)
    return tuple(sorted(found, key=lambda tuned: recipe["floors"].index(tuned.floor.value)))
