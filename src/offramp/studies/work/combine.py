"""Accelerations of one model alone and together, timed in turns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from offramp.kit.numbers import Whole
from offramp.studies.work.inputs import TurnsWork
from offramp.studies.work.work import WorkContext
from offramp.timing.results import CombineResult

if TYPE_CHECKING:
    from offramp.studies.task import TaskCost
    from offramp.studies.task_costs import Sizes


@dataclass(frozen=True)
class CombinedAccelerations:
    """The measurement with every sample."""

    combined: CombineResult


@dataclass(frozen=True, kw_only=True)
class CombineWork(TurnsWork[CombinedAccelerations]):
    """Combines accelerations."""

    kind = "combine"

    accelerations: tuple[str, ...]
    policy: str | None = None
    """By which tokens leave."""
    new_tokens: Whole

    def cost(self, sizes: Sizes) -> TaskCost:
        """Every set of transforms is a model, on which ways to decode take turns."""
        models = 2 ** len(self.tried)
        ways = 1 + len(self.accelerations) - len(self.tried)
        return self.cost_of_turns(sizes, self.new_tokens, models * ways - 1, models=models)

    def run(self, context: WorkContext) -> CombinedAccelerations:
        """Combine. Raises what `offramp.timing.combine.combine` raises, OfframpError for inputs
        that are not the recipe's.
        """
        from offramp.decoding.openings import prompts_of
        from offramp.decoding.options import DecodingOptions
        from offramp.timing.combine import combine
        from offramp.timing.stopping import TimeLimits

        self.require_here()
        workload, model = self.load_workload(), self.load_model(context)
        result = combine(
            model,
            self.accelerations,
            DecodingOptions.read(self.policy, new_tokens=self.new_tokens),
            prompts=prompts_of(model, workload, self.prompts, new_tokens=self.new_tokens),
            limits=TimeLimits(self.seconds, self.rounds),
            workload=workload.name,
            seed=self.seed,
        )
        return CombinedAccelerations(result)
