"""Policies under a load: at which requests per second they pay, predicted from a trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from offramp.defaults import SEED, WORTH
from offramp.kit.numbers import NotNegative, Whole
from offramp.serving.request import OF_A_LOAD, RATES_TRIED, Load
from offramp.serving.results import LoadResult
from offramp.studies.study_tables import TUNED
from offramp.studies.work.inputs import PricedWork, trace_of
from offramp.studies.work.tune import AnsweredWork
from offramp.studies.work.work import WorkContext

if TYPE_CHECKING:
    from offramp.studies.task import TaskCost
    from offramp.studies.task_costs import Sizes

SECONDS_PER_FACT = 4e-6
SERVED_SECONDS = 0.2
"""Of one contender at one rate with the usual number of requests, roughly."""
ASKED = (*OF_A_LOAD, "ladder", "rates", "padded")
"""Options of `offramp load` that an entry may have; the study says the others."""


@dataclass(frozen=True, kw_only=True)
class LoadWork(PricedWork[LoadResult], AnsweredWork[LoadResult]):
    """Predicts what policies come to under a load. Needs no model.

    Of the tuner's answers those that were certified with K and V as a server has them keep their certificate.
    """

    kind = "load"

    policies: tuple[str, ...]
    """Texts, or "tuned" for the tuner's answers."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Those of `offramp load`, where they are given."""
    worth: NotNegative = WORTH
    seed: Whole = SEED

    def cost(self, sizes: Sizes) -> TaskCost:
        """It serves requests of every contender at every rate."""
        reading = sizes.reading_a_trace(SECONDS_PER_FACT)
        if reading.seconds is None:
            return reading
        asked = Load("a trace", **self.options, policy="never")
        rates = RATES_TRIED if isinstance(asked.rates, str) else len(asked.rates)
        contenders = 2 + len(self.policies)
        return replace(reading, seconds=reading.seconds + SERVED_SECONDS * rates * contenders * asked.seeds)

    def run(self, context: WorkContext) -> LoadResult:
        """Predict. Raises what `offramp.load` raises, OfframpError for another machine than the recipe's."""
        trace, machine = trace_of(context, self.trace), self.machine_used(context)
        assert machine is not None, "bytes moved say nothing of a load, and have no cell"
        policies: list[Any] = [policy for policy in self.policies if policy != TUNED]
        for tuned in self.answers(context) if TUNED in self.policies else ():
            policies.append(tuned if tuned.kv == "propagate" else tuned.policy)
        options = {"padded": self.profile is not None, **self.options, "worth": self.worth, "seed": self.seed}
        return Load(trace, **options, policy=policies or ["never"], hardware=machine).carry_out()
