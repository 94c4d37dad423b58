"""A matched pair of models on one workload: the difference of every figure, over the same documents."""

from __future__ import annotations

from offramp.records.typed import finite_json
from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import require_planned, trace_of
from offramp.studies.work.text_size import read_text_sizes


class PairWork:
    """Leaves second less first of every figure, with paired intervals over documents. Needs no model."""

    kind = "pair"

    def run(self, task: Task, context: Context) -> None:
        """Compare. Raises InputError for traces of other workloads or token counts."""
        from offramp.scoring.paired import paired_differences

        require_planned(task)
        sides = ("first", "second")
        first, second = (trace_of(context, role) for role in sides)
        sizes = [
            {name: size.bytes for name, size in read_text_sizes(context.input(role)).items()}
            for role in sides
        ]
        paired = paired_differences(
            first,
            second,
            draws=task.recipe["draws"],
            seed=task.recipe["seed"],
            text_bytes=(sizes[0], sizes[1]),
        )
        context.write_result(
            finite_json(
                {
                    "documents": paired.documents,
                    "differences": [figure.to_json() for figure in paired.figures],
                }
            )
        )
