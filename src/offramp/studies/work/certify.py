"""The tuner's answers on a trace, executed: per floor the fastest policy that was certified by decoding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from offramp.defaults import WORTH
from offramp.errors import DamagedFileError, DiskFullError, OfframpError
from offramp.files import canonical_json, sha256_of_text
from offramp.kit.numbers import NotNegative, Whole
from offramp.kit.typed import to_json
from offramp.studies.work.baselines import BaselinesWork
from offramp.studies.work.inputs import TextWork, heads_of, profile_of, require_this_machine, trace_of
from offramp.studies.work.league import why_not_halved
from offramp.studies.work.tune import TunedAnswers, TuningWork
from offramp.studies.work.work import Needed, WorkContext

if TYPE_CHECKING:
    from offramp.costs.machine import Machine
    from offramp.studies.task import TaskCost
    from offramp.studies.task_costs import Sizes
    from offramp.tracing.trace import Trace
    from offramp.tuning.baseline import Baseline
    from offramp.tuning.tuned import Tuned


@dataclass(frozen=True, kw_only=True)
class CertifyWork(TextWork[TunedAnswers], TuningWork):
    """Leaves what `TuneWork` leaves; where nothing can be decoded the replay bounds, and why.

    What was decoded is kept for all tasks of the study. Ends by the clock, so that it runs alone.

    documents, candidates, new_tokens, seconds: as of a study's table [certify].
    """

    kind = "certify"
    exclusive = True

    heads: Needed | None = None
    """That the trace is read through."""
    baselines: Needed | None = None
    """That were timed before: what is not faster than they are needs no certificate."""
    worth: NotNegative = WORTH
    documents: Whole | None = None
    candidates: Whole
    new_tokens: Whole
    seconds: NotNegative
    counted_by: str | None = None
    """Version of the package that counts wrong words, where speech is written down; None without it."""

    def cost(self, sizes: Sizes) -> TaskCost:
        """It ends by the clock."""
        return sizes.timing(self.seconds)

    def run(self, context: WorkContext) -> TunedAnswers:
        """Tune at all floors together, the main one first: they share reruns and executions.

        Raises what `offramp.tune` raises, OfframpError for inputs that are not the recipe's.
        """
        trace, machine = trace_of(context, self.trace), self.machine_used(context)
        if self.profile is not None:
            facts = profile_of(context, self.profile).details["machine"]
            # Documents are decoded side by side, by all threads; what is priced is one alone.
            require_this_machine(self, {**facts, "threads": self.threads})
        why = why_not_halved(trace, self.seed)
        if why is not None:
            return self.decided(context, TunedAnswers((), why))
        inputs = self.inputs(context)
        timed = () if self.baselines is None else context.result(BaselinesWork, self.baselines).known
        try:
            answers = TunedAnswers(self.executed(trace, machine, inputs, timed))
        except (DiskFullError, DamagedFileError):
            raise  # of today's disk, and no answer about the model
        except OfframpError as error:  # a family that is only traced, or prompts that are too few
            answers = TunedAnswers(self.by_replay(trace, machine), why_not_executed=error.what)
        return self.decided(context, answers)

    def inputs(self, context: WorkContext) -> dict[str, Any]:
        """What is decoded, and the folder for it.

        Raises OfframpError for inputs that are not the recipe's, InputError for a folder that another process
        holds.
        """
        from offramp.decoding.execution.execution import ExecutionStore

        folder = context.executions / self.same_text
        with ExecutionStore.open(folder):
            model, workload = self.load_model(context), self.load_workload()
        return {
            "model": model,
            "workload": workload,
            "heads": heads_of(context, self.heads),
            "folder": folder,
        }

    def executed(
        self,
        trace: Trace,
        machine: Machine | None,
        inputs: Mapping[str, Any],
        baselines: Sequence[Baseline] = (),
    ) -> tuple[Tuned, ...]:
        """The answers by what decodes. Raises what decoding raises."""
        from offramp.decoding.execution.tune import tune_executed
        from offramp.tuning.executed import DecodingLimits
        from offramp.tuning.verdict import from_main

        floors = sorted(self.floors, key=lambda floor: (from_main(floor), floor))
        answers = tune_executed(
            trace,
            [{"agreement": floor} for floor in floors],
            DecodingLimits(self.documents, self.seconds, self.candidates, worth=self.worth, timed=baselines),
            machine,
            **inputs,
            new_tokens=self.new_tokens,
            delta=self.delta,
            seed=self.seed,
        )
        return tuple(sorted(answers, key=lambda tuned: self.floors.index(tuned.floor.value)))

    @property
    def same_text(self) -> str:
        """A name for what it decodes: one process at a time writes into a folder."""
        return sha256_of_text(canonical_json(to_json([self.model, self.workload, self.dtype])))[:16]
