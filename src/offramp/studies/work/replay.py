"""One policy replayed on a trace, priced on a machine."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

from offramp.defaults import SEED
from offramp.errors import PolicyError
from offramp.kit.numbers import Count, Whole
from offramp.policies.grammar import parse_policy
from offramp.policies.replay import ReplayFigures, ReplayIntervals, replay, replay_intervals
from offramp.studies.work.inputs import PricedWork, trace_of
from offramp.studies.work.work import WorkContext

if TYPE_CHECKING:
    from offramp.studies.task import Task, TaskCost
    from offramp.studies.task_costs import Sizes

SECONDS_PER_FACT = 4e-6


@dataclass(frozen=True)
class Replayed(ReplayIntervals):
    """The figures of a replay, three of them with intervals over documents."""

    replay: ReplayFigures
    tokens: Count
    """Of the trace."""


@dataclass(frozen=True, kw_only=True)
class ReplayWork(PricedWork[Replayed]):
    """Replays a policy. Needs no model.

    kv, batch: how it is charged for.
    """

    kind = "replay"

    policy: str
    kv: str = "propagate"
    batch: Whole = 1
    seed: Whole = SEED

    @classmethod
    def unlike(cls, result: Replayed, task: Task) -> str | None:
        """One of another policy is. A policy's file may be gone, and is not looked for."""
        found, asked = result.replay, task.recipe
        try:
            policy = parse_policy(asked["policy"])
        except PolicyError:
            policy = found.policy
        alike = (found.policy, found.kv) == (policy, asked["kv"])
        return None if alike else f"it is of {found.policy} with {found.kv}, not of {policy}"

    def cost(self, sizes: Sizes) -> TaskCost:
        """It reads its trace."""
        return sizes.reading_a_trace(SECONDS_PER_FACT)

    def run(self, context: WorkContext) -> Replayed:
        """Replay. Raises what `offramp.replay` raises, OfframpError for another machine than the recipe's."""
        trace, machine = trace_of(context, self.trace), self.machine_used(context)
        charged: Any = {"machine": machine, "kv": self.kv, "batch": self.batch, "seed": self.seed}
        result = replay(trace, self.policy, **charged)
        intervals = replay_intervals(trace, self.policy, **charged)
        figures = {field.name: getattr(result, field.name) for field in fields(ReplayFigures)}
        return Replayed(**vars(intervals), replay=ReplayFigures(**figures), tokens=trace.token_count)
