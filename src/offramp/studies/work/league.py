"""The policy league of a trace on a machine, and the verdicts at the study's floors."""

from __future__ import annotations

from dataclasses import asdict

from offramp.records.typed import finite_json
from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import machine_of, require_planned, trace_of
from offramp.tracing.trace import Trace


class LeagueWork:
    """Leaves every family's best member and the verdict, per floor. Needs no model."""

    kind = "league"

    def run(self, task: Task, context: Context) -> None:
        """Search and judge; a trace too small for that gives a result that says so.

        Raises what `offramp.tuning` raises, OfframpError for a machine that is not the recipe's.
        """
        from offramp.tuning.judging import halves_of, judge
        from offramp.tuning.ranking import ranking

        require_planned(task)
        trace, machine = trace_of(context), machine_of(task, context)
        floors, seed = tuple(task.recipe["floors"]), task.recipe["seed"]
        why = why_not_halved(trace, seed)
        halves = halves_of(trace, seed) if why is None else None
        verdicts = judge(trace, floors, seed=seed, machine=machine, halves=halves)
        entries = () if halves is None else ranking(trace, machine, floors, seed, halves=halves)
        context.write_result(
            finite_json(
                {
                    "machine": machine.name,
                    "machine_source": machine.source,
                    "floors": floors,
                    "entries": [asdict(entry) for entry in entries],
                    "verdicts": [asdict(verdict) for verdict in verdicts],
                    "why_empty": why,
                }
            )
        )


def why_not_halved(trace: Trace, seed: int) -> str | None:
    """Why no policy can be chosen on one half of the documents and judged on the other; None if one can."""
    from offramp.tuning.splits import split_documents

    if len(trace.exits) < 2:
        return "the trace holds no exit before the last: there is no policy to search"
    if not len(split_documents(trace, seed)[0]):
        return "one document cannot both choose policies and judge them: trace at least 40 documents"
    return None
