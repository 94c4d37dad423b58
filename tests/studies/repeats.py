"""A kind of work as a plug-in would bring it, all of it in one file: how often a text repeats itself."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.scoring.card import ScoreCard
from offramp.studies.work.inputs import TraceReader, trace_of
from offramp.studies.work.score import ScoreWork
from offramp.studies.work.work import Needed, WorkContext


@dataclass(frozen=True)
class Repeats:
    """share: of the tokens that stand within so many tokens before. card: of the same trace."""

    share: float
    tokens: int
    card: ScoreCard


@dataclass(frozen=True, kw_only=True)
class RepeatsWork(TraceReader[Repeats]):
    """Counts tokens that stand among the last few. score: whose card goes with it."""

    kind = "repeats"

    score: Needed
    within: int
    seed: int = 0

    def run(self, context: WorkContext) -> Repeats:
        """Count, document by document."""
        trace = trace_of(context, self.trace)
        tokens, documents = trace.token.tolist(), trace.document.tolist()
        found = 0
        for place, token in enumerate(tokens):
            before = range(max(0, place - self.within), place)
            found += any(tokens[at] == token and documents[at] == documents[place] for at in before)
        (context.folder / "files").mkdir(exist_ok=True)
        (context.folder / "files" / "count.txt").write_text(f"{found}\n")
        return Repeats(found / len(tokens), len(tokens), context.result(ScoreWork, self.score).card)
