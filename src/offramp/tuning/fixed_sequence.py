"""What tuning asks of a model without knowing one, and candidates tested in sequence on what it decodes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self

import numpy as np
from numpy.typing import NDArray

from offramp.policies.decisions import Decisions
from offramp.policies.policy import ExitPolicy
from offramp.scoring.text_quality import TextQuality
from offramp.tracing.trace import Trace
from offramp.tuning.bounds import (
    ENOUGH_TO_REFUTE,
    OUT_OF_TIME,
    Losses,
    Method,
    Outcome,
    fewest_documents,
    settle,
)
from offramp.tuning.floor import FloorKind


@dataclass(frozen=True)
class Rerun:
    """A policy on the texts of some documents, keys and values as its strategy leaves them."""

    trace: Trace
    """The rows that the policy was asked about."""
    decisions: Decisions
    """Where they left and were probed."""
    losses: Losses
    """Share of each document's new tokens that are not the full model's: float64 [documents], in the order of
    `document_rows`."""
    free: bool
    """Whether it took no forward pass, the strategy's K and V being the full model's own."""
    reference_losses: Losses | None = None
    """Of a trace with a reference, the shares that are not the reference's."""

    def losses_at(self, kind: FloorKind) -> Losses:
        """Those that a floor on a share of tokens bounds: float64 [documents]."""
        if kind == "agreement":
            return self.losses
        assert self.reference_losses is not None, "a trace without a reference has no such floor"
        return self.reference_losses


class Executor(Protocol):
    """A model at hand: what `offramp.decoding.execution.executor.ModelExecutor` does."""

    @property
    def kind(self) -> FloorKind:
        """The floor that its losses are of: by the full model's choices, or by a reference's."""

    @property
    def strategies(self) -> tuple[str, ...]:
        """K,V strategies to try."""

    @property
    def documents(self) -> int:
        """Documents at hand to certify on."""

    @property
    def prompt_tokens(self) -> int | None:
        """Tokens of an opening, None for whole prompts."""

    @property
    def new_tokens(self) -> int:
        """Tokens of an answer, at most."""

    @property
    def left_out(self) -> str:
        """Documents that give no prompt, in words; empty if there are none."""

    def certified_on(self, documents: int) -> Mapping[str, str]:
        """The first certify documents, in the drawn order: sketches of their texts by their ids."""

    def can(self, policy: ExitPolicy, kv: str) -> bool:
        """Whether the model can decode with a policy and a strategy; its thresholds do not matter."""

    def rerun(self, policy: ExitPolicy, kv: str, documents: NDArray[np.int64]) -> Rerun:
        """The policy on some of the trace's documents, places in `Trace.documents`."""

    def losses(self, policy: ExitPolicy, kv: str, first: int, last: int) -> Losses:
        """Share of the generated tokens that are not the judge's choice (see `kind`): float64 [last - first].

        Of the certify documents number first .. last - 1 in the drawn order.
        """

    def exits(self, policy: ExitPolicy, kv: str, documents: int) -> Sequence[Sequence[int]]:
        """Where the tokens of each answer left, of the first certify documents, which were decoded before."""

    def fresh_losses(self, policy: ExitPolicy, kv: str, seen: int, most: int) -> Losses:
        """The same of at most so many documents that nothing was chosen or certified on.

        seen: certify documents that were looked at.
        """

    def text_quality(self, policy: ExitPolicy, kv: str, seen: int, most: int) -> TextQuality | None:
        """The full model's answers and the policy's to at most so many documents, against what was to be
        written, those first that nothing was chosen or certified on; None where no document says what that
        is. seen: as before.
        """


class Deadline:
    """When the time that was given is used up; never without a limit."""

    def __init__(self, seconds: float | None) -> None:
        self._end = None if seconds is None else time.monotonic() + seconds

    @property
    def over(self) -> bool:
        """Whether it is used up."""
        return self._end is not None and time.monotonic() >= self._end

    def share(self, share: float) -> Self:
        """One that ends after this share of what is left."""
        return type(self)(None if self._end is None else share * max(0.0, self._end - time.monotonic()))


@dataclass(frozen=True)
class Proposal:
    """A policy of the search with a K,V strategy, as rerun on the search documents."""

    policy: ExitPolicy
    kv: str
    replayed: float
    """Mean loss over documents in replay."""
    risk: float
    """The same as rerun."""
    cost: float
    """Of a token there, charged as the strategy runs."""
    plain: float
    """The same of plain decoding."""
    free: bool
    """Whether the rerun was a replay, K and V being the full model's."""

    @property
    def relative_cost(self) -> float:
        """Cost over plain cost of the same tokens."""
        return self.cost / self.plain


DOCUMENTS_AT_ONCE = 8
"""Documents that are decoded before a test looks at its capital again."""

OnDocuments = Callable[[int, int], None]
"""Told of documents that the candidate at hand was decoded on, and of those planned."""


@dataclass(frozen=True)
class Tried:
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

    risk: largest mean loss allowed. planned: documents that a candidate may be decoded on, at most. needed:
    documents without a loss that certify the floor; with fewer a candidate can only be refuted.
    """

    executor: Executor
    risk: float
    delta: float
    rule: Method
    planned: int
    clock: Deadline
    on_documents: OnDocuments
    needed: int = 0
    sized: int | None = None
    """Documents that the bets of the betting bound are sized for, None for all planned ones."""
    refutes: bool = False
    """Whether a candidate is tested until it is refuted, not only until it cannot be certified: that is the
    answer of a verdict."""
    known: dict[tuple[ExitPolicy, str], Losses] = field(default_factory=dict)
    """Losses of documents that candidates were decoded on before, the first in the drawn order: time that is
    used up forbids to decode, and not to read them."""

    def run(self, proposals: Sequence[Proposal], before: Sequence[Tried] = ()) -> list[Tried]:
        """Test candidates in their order, each at the whole delta; the first that fails is the last.

        before: what was tested and passed already; it comes first in what is given back.
        Fixed-sequence testing, as `offramp.tuning.certificate.run_sequence`. The betting bound looks at every
        document and stops as soon as it is settled (see `offramp.tuning.bounds.settle`); every other
        method decides on all planned documents. A method without a sequence tests all.
        """
        trials = list(before)
        for proposal in proposals:
            trials.append(self._bet(proposal) if self.rule.name == "wsr" else self._decide(proposal, trials))
            if self.clock.over and not trials[-1].passed:
                break
            if self.rule.sequential and not trials[-1].passed:
                break
        return trials

    def _bet(self, proposal: Proposal) -> Tried:
        losses = self.known.get((proposal.policy, proposal.kv), np.zeros(0))[: self.planned]
        # With too few documents a candidate cannot be certified, and may still be refuted.
        enough = self.planned >= self.needed
        most = self.planned if enough else max(self.needed, fewest_documents(self.risk, self.delta))
        patience = min(self.needed, ENOUGH_TO_REFUTE) if enough else most + 1
        sized = most if self.sized is None else min(self.sized, most)

        def settled_by(losses: Losses) -> tuple[Outcome, int] | None:
            return settle(losses, self.risk, self.delta, most, patience, sized, refutes=self.refutes)

        settled = settled_by(losses)
        while settled is None:
            if len(losses) == self.planned:
                settled = "documents used up", len(losses)
            elif self.clock.over:
                settled = OUT_OF_TIME, len(losses)
            else:
                losses = self._more(proposal, losses)
                settled = settled_by(losses)
        outcome, documents = settled
        return Tried(proposal, losses[:documents], outcome)

    def _decide(self, proposal: Proposal, before: Sequence[Tried]) -> Tried:
        losses = np.zeros(0)
        while len(losses) < self.planned:
            if self.clock.over:
                return Tried(proposal, losses, OUT_OF_TIME)
            losses = self._more(proposal, losses)
        columns = np.stack([*(trial.losses for trial in before), losses], axis=1)
        passed = self.rule.p_values(columns, self.risk, self.delta)[-1] <= self.delta
        return Tried(proposal, losses, "certified" if passed else "documents used up")

    def _more(self, proposal: Proposal, losses: Losses) -> Losses:
        """The losses, and those of some documents more."""
        first = len(losses)
        last = min(first + DOCUMENTS_AT_ONCE, self.planned)
        more = self.executor.losses(proposal.policy, proposal.kv, first, last)
        self.on_documents(last, self.planned)
        losses = np.concatenate([losses, more])
        key = (proposal.policy, proposal.kv)
        if len(losses) > len(self.known.get(key, ())):
            self.known[key] = losses
        return losses


def chosen_trial(trials: Sequence[Tried]) -> Tried | None:
    """The fastest candidate that passed, None if none did."""
    passed = [trial for trial in trials if trial.passed]
    return min(passed, key=lambda trial: trial.proposal.relative_cost, default=None)
