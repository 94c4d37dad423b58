"""The tuner's answers on a trace: per floor the fastest policy that keeps it in replay."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from offramp.defaults import DELTA, FLOORS, SEED
from offramp.kit.numbers import Number, Proportion, Whole
from offramp.studies.work.inputs import PricedWork, trace_of
from offramp.studies.work.league import LeagueWork
from offramp.studies.work.work import Needed, Result, Work, WorkContext
from offramp.tuning.tuned import Tuned
from offramp.tuning.verdict import Verdict

if TYPE_CHECKING:
    from offramp.costs.machine import Machine
    from offramp.studies.task import TaskCost
    from offramp.studies.task_costs import Sizes
    from offramp.tracing.trace import Trace

SECONDS_PER_FACT = 6e-5


@dataclass(frozen=True)
class TunedAnswers:
    """One answer per floor."""

    tuned: tuple[Tuned, ...]
    why_empty: str | None = None
    """None where there are any."""
    why_not_executed: str | None = None
    """Where it was to be."""
    verdicts: tuple[Verdict, ...] = ()
    """At every floor of the ranking, as these answers settle them."""


@dataclass(frozen=True, kw_only=True)
class TuningWork(PricedWork[TunedAnswers]):
    """Work that leaves the tuner's answers, and each as a file that `offramp predict` and `generate` read."""

    league: Needed
    """Whose verdicts by replay the answers settle."""
    floors: tuple[Number, ...] = FLOORS
    delta: Proportion = DELTA
    seed: Whole = SEED

    def by_replay(self, trace: Trace, machine: Machine | None) -> tuple[Tuned, ...]:
        """The answers that the trace alone allows. Raises what `offramp.tune` raises."""
        from offramp.tuning.tune import tune

        return tuple(
            tune(trace, {"agreement": floor}, machine, delta=self.delta, seed=self.seed)
            for floor in self.floors
        )

    def decided(self, context: WorkContext, answers: TunedAnswers) -> TunedAnswers:
        """The answers with the verdicts that they settle; each is written as a file of its own."""
        from offramp.tuning.tuned import write_tuned
        from offramp.tuning.verdict import settle_all

        for tuned in answers.tuned:
            write_tuned(context.folder / tuned_file_name(tuned.floor.value), tuned)
        replayed = context.result(LeagueWork, self.league).verdicts
        return replace(answers, verdicts=settle_all(replayed, answers.tuned))


@dataclass(frozen=True, kw_only=True)
class AnsweredWork(Work[Result]):
    """Work on the tuner's answers, where it was asked."""

    certify: Needed | None = None
    tune: Needed | None = None

    def answers(self, context: WorkContext) -> tuple[Tuned, ...]:
        """Those that were executed, else those of a replay; none where the tuner was not asked."""
        from offramp.studies.work.certify import CertifyWork

        if self.certify is not None:
            return context.result(CertifyWork, self.certify).tuned
        return () if self.tune is None else context.result(TuneWork, self.tune).tuned


@dataclass(frozen=True, kw_only=True)
class TuneWork(TuningWork):
    """Leaves the tuner's replay bounds.

    Needs no model. A trace of too few documents gives the full model and the reason, as the tuner does.
    """

    kind = "tune"

    def cost(self, sizes: Sizes) -> TaskCost:
        """It reads its trace once for each floor."""
        return sizes.reading_a_trace(SECONDS_PER_FACT, rounds=len(self.floors))

    def run(self, context: WorkContext) -> TunedAnswers:
        """Tune per floor. Raises what `offramp.tune` raises, OfframpError for another machine."""
        trace, machine = trace_of(context, self.trace), self.machine_used(context)
        if len(trace.exits) < 2:
            why = "the trace holds no exit before the last: there is no policy to tune"
            return self.decided(context, TunedAnswers((), why))
        return self.decided(context, TunedAnswers(self.by_replay(trace, machine)))


def tuned_file_name(floor: float) -> str:
    """The name of the file that holds the answer at a floor."""
    return f"tuned-{floor:g}.json"
