"""The tuner's answers on a trace: per floor the fastest policy that keeps it in replay."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from offramp.kit.typed import finite_json, from_json
from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import machine_of, require_planned, trace_of

if TYPE_CHECKING:
    from offramp.tuning.tuned import Tuned


@dataclass(frozen=True)
class Answers:
    """One answer per floor. why_empty: None where there are any. why_not_executed: where it was to be."""

    tuned: tuple[Tuned, ...]
    why_empty: str | None = None
    why_not_executed: str | None = None


class TuneWork:
    """Leaves the tuner's replay bounds, and each as a file that `offramp predict` and `generate` read.

    Needs no model. A trace of too few documents gives the full model and the reason, as the tuner does.
    """

    kind = "tune"

    def run(self, task: Task, context: Context) -> None:
        """Tune per floor. Raises what `offramp.tune` raises, OfframpError for another machine."""
        from offramp.tuning.tune import tune

        require_planned(task)
        trace, machine = trace_of(context), machine_of(task, context)
        if len(trace.exits) < 2:
            why = "the trace holds no exit before the last: there is no policy to tune"
            write_answers(context, Answers((), why))
            return
        found = tuple(
            tune(trace, {"agreement": floor}, machine, delta=task.recipe["delta"], seed=task.recipe["seed"])
            for floor in task.recipe["floors"]
        )
        write_answers(context, Answers(found))


def tuned_file_name(floor: float) -> str:
    """The name of the file that holds the answer at a floor."""
    return f"tuned-{floor:g}.json"


def write_answers(context: Context, answers: Answers) -> None:
    """Write the result, and each answer as a file of its own."""
    from offramp.tuning.tuned import to_json, write_tuned

    for tuned in answers.tuned:
        write_tuned(context.folder / tuned_file_name(tuned.floor.value), tuned)
    context.write_result(
        finite_json(
            {
                "tuned": [to_json(tuned) for tuned in answers.tuned],
                "why_empty": answers.why_empty,
                "why_not_executed": answers.why_not_executed,
            }
        )
    )


def read_answers(result: Mapping[str, Any]) -> Answers:
    """What `write_answers` wrote. Raises InvalidRecordError."""
    from offramp.tuning.tuned import Tuned

    found = tuple(from_json(Tuned, {**one, "policy_text": one["policy"]}) for one in result["tuned"])
    return Answers(found, result["why_empty"], result["why_not_executed"])
