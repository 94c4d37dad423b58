"""The score card of a trace, with the size of its text."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from offramp.defaults import DRAWS, SEED
from offramp.kit.numbers import Count, NotNegative, Whole
from offramp.scoring.card import ScoreCard
from offramp.scoring.documents import NOTHING, TextSize, bits_per_byte
from offramp.studies.work.inputs import TraceReader, trace_of
from offramp.studies.work.trace import read_text_sizes
from offramp.studies.work.work import Needed, WorkContext

if TYPE_CHECKING:
    from offramp.studies.task import TaskCost
    from offramp.studies.task_costs import Sizes

SECONDS_PER_FACT = 5e-5


@dataclass(frozen=True)
class ScoredTrace:
    """A card with what it is of."""

    card: ScoreCard
    text: TextSize
    """How long the whole text is."""
    own_text: bool
    """Whether the model wrote some of it."""
    bits_per_byte: NotNegative | None
    documents: tuple[str, ...]
    """Their ids."""
    tokens: Count
    layers: Count
    workload_fingerprint: str
    notes: tuple[str, ...]
    """Of the trace."""


@dataclass(frozen=True, kw_only=True)
class ScoreWork(TraceReader[ScoredTrace]):
    """Scores a trace. Needs no model."""

    kind = "score"

    raw: Needed | None = None
    """The same read by the model's own head, None if this one is."""
    draws: Whole = DRAWS
    seed: Whole = SEED

    def cost(self, sizes: Sizes) -> TaskCost:
        """It reads its trace."""
        return sizes.reading_a_trace(SECONDS_PER_FACT)

    def run(self, context: WorkContext) -> ScoredTrace:
        """Score. Raises what `offramp.score` raises."""
        from offramp.scoring.scoring import are_two_readings, score

        trace = trace_of(context, self.trace)
        raw = None if self.raw is None else trace_of(context, self.raw)
        beside = raw if raw is not None and are_two_readings(raw, trace) else None
        text = sum(read_text_sizes(context.folder_of(self.trace)).values(), start=NOTHING)
        return ScoredTrace(
            card=score(trace, beside=beside, draws=self.draws, seed=self.seed),
            text=text,
            own_text=bool(trace.generated.any()),
            bits_per_byte=bits_per_byte(trace, text.bytes),
            documents=tuple(trace.documents[int(place)].id for place in np.unique(trace.document)),
            tokens=trace.token_count,
            layers=trace.layers,
            workload_fingerprint=trace.request["workload"]["fingerprint"],
            notes=tuple(trace.provenance["notes"]),
        )
