"""The fixed sequence of candidates, each tested on documents that are really decoded."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from offramp.tuning.bounds import Losses, Method
from offramp.tuning.executor import Executor
from offramp.tuning.proposals import Clock, Proposal
from offramp.tuning.sequential import Outcome, Settled, settle

DOCUMENTS_AT_ONCE = 8
"""Documents that are decoded before a test looks at its capital again."""

OnDocuments = Callable[[int, int], None]
"""Told of documents that the candidate at hand was decoded on, and of those planned."""


@dataclass(frozen=True)
class Trial:
    """One candidate's test. losses: float64 [documents], those that settled it, in the drawn order."""

    proposal: Proposal
    losses: Losses
    outcome: Outcome

    @property
    def passed(self) -> bool:
        """Whether the candidate is certified."""
        return self.outcome == "certified"

    @property
    def documents(self) -> int:
        """How many documents it was tested on."""
        return len(self.losses)


@dataclass(frozen=True)
class FixedSequence:
    """Tests of executed losses at one floor, each candidate at the whole delta.

    risk: largest mean loss allowed. planned: documents that a candidate may be decoded on, at most.
    """

    executor: Executor
    risk: float
    delta: float
    rule: Method
    planned: int
    clock: Clock
    on_documents: OnDocuments

    def run(self, proposals: Sequence[Proposal]) -> list[Trial]:
        """Test candidates in their order, each at the whole delta; the first that fails is the last.

        Fixed-sequence testing, as `offramp.tuning.certify.run_sequence`. The betting bound looks at every
        document and stops as soon as it is settled (see `offramp.tuning.sequential.settle`); every other
        method decides on all planned documents. A method without a sequence tests all.
        """
        trials: list[Trial] = []
        for proposal in proposals:
            trials.append(self._bet(proposal) if self.rule.name == "wsr" else self._decide(proposal, trials))
            if self.clock.over and not trials[-1].passed:
                break
            if self.rule.sequential and not trials[-1].passed:
                break
        return trials

    def _bet(self, proposal: Proposal) -> Trial:
        losses, settled = np.zeros(0), settle(np.zeros(0), self.risk, self.delta, self.planned)
        while settled is None:
            if self.clock.over:
                settled = Settled("time used up", len(losses))
                break
            losses = self._more(proposal, losses)
            settled = settle(losses, self.risk, self.delta, self.planned)
        return Trial(proposal, losses[: settled.documents], settled.outcome)

    def _decide(self, proposal: Proposal, before: Sequence[Trial]) -> Trial:
        losses = np.zeros(0)
        while len(losses) < self.planned:
            if self.clock.over:
                return Trial(proposal, losses, "time used up")
            losses = self._more(proposal, losses)
        columns = np.stack([*(trial.losses for trial in before), losses], axis=1)
        passed = self.rule.p_values(columns, self.risk, self.delta)[-1] <= self.delta
        return Trial(proposal, losses, "certified" if passed else "documents used up")

    def _more(self, proposal: Proposal, losses: Losses) -> Losses:
        """The losses, and those of some documents more."""
        first = len(losses)
        last = min(first + DOCUMENTS_AT_ONCE, self.planned)
        more = self.executor.losses(proposal.policy, proposal.kv, first, last)
        self.on_documents(last, self.planned)
        return np.concatenate([losses, more])


def chosen_trial(trials: Sequence[Trial]) -> Trial | None:
    """The fastest candidate that passed, None if none did."""
    passed = [trial for trial in trials if trial.passed]
    return min(passed, key=lambda trial: trial.proposal.relative_cost, default=None)
