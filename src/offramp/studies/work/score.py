"""The score card of a trace, with the size of its text."""

from __future__ import annotations

import math
from dataclasses import asdict

import numpy as np

from offramp.studies.task import Task
from offramp.studies.work.context import Context
from offramp.studies.work.inputs import require_planned, trace_of
from offramp.studies.work.text_size import NOTHING, read_text_sizes
from offramp.tracing.trace import Trace


class ScoreWork:
    """Leaves the card as JSON. Needs no model."""

    kind = "score"

    def run(self, task: Task, context: Context) -> None:
        """Score. Raises what `offramp.score` raises."""
        from offramp.scoring.scoring import score

        require_planned(task)
        trace = trace_of(context)
        card = score(trace, draws=task.recipe["draws"], seed=task.recipe["seed"])
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


def bits_per_byte(trace: Trace, size: int) -> float | None:
    """Summed NLL of the observed tokens at the last exit, in bits, over the text's bytes; None without any.

    Unlike nats per token, it does not depend on how a tokenizer cuts the text.
    """
    nats = float(np.sum(trace.fact("nll")[:, -1], dtype=np.float64))
    return nats / math.log(2.0) / size if size else None
