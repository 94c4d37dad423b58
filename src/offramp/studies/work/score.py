"""The score card of a trace, with the size of its text."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np

from offramp.scoring.text_size import NOTHING, bits_per_byte
from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import require_planned, trace_of
from offramp.studies.work.text_size import read_text_sizes


class ScoreWork:
    """Leaves the card as JSON. Needs no model."""

    kind = "score"

    def run(self, task: Task, context: Context) -> None:
        """Score. Raises what `offramp.score` raises."""
        from offramp.scoring.paired_readings import are_two_readings
        from offramp.scoring.scoring import score

        require_planned(task)
        trace = trace_of(context)
        raw = trace_of(context, "raw") if "raw" in task.needs else None
        beside = raw if raw is not None and are_two_readings(raw, trace) else None
        card = score(trace, beside=beside, draws=task.recipe["draws"], seed=task.recipe["seed"])
        sizes = read_text_sizes(context.input("trace"))
        text = sum(sizes.values(), start=NOTHING)
        ids = [trace.documents[int(place)].id for place in np.unique(trace.document)]
        context.write_result(
            {
                "card": card.to_json(),
                "text": asdict(text),
                "own_text": bool(trace.generated.any()),
                "bits_per_byte": bits_per_byte(trace, text.bytes),
                "documents": ids,
                "tokens": trace.token_count,
                "layers": trace.layers,
                "workload_fingerprint": trace.request["workload"]["fingerprint"],
                "notes": list(trace.provenance["notes"]),
            }
        )
