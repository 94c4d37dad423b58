"""What the tuner asks of a model, without knowing one: reruns of a policy, and documents really decoded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from offramp.policies.policy import ExitPolicy
from offramp.policies.walk import Walk
from offramp.tracing.trace import Trace
from offramp.tuning.bounds import Losses


@dataclass(frozen=True)
class Rerun:
    """A policy on the texts of some documents, keys and values as its strategy leaves them.

    trace: the rows that the policy was asked about; walk: where they left and were probed. losses: float64
    [documents], share of each document's new tokens that are not the full model's, of a transformed model
    also `reference_losses`, those that are not the untransformed one's; in the order of `document_rows`.
    free: whether it took no forward pass, the strategy's K and V being the full model's own.
    """

    trace: Trace
    walk: Walk
    losses: Losses
    free: bool
    reference_losses: Losses | None = None

    @property
    def risk(self) -> float:
        """Mean loss over documents."""
        return float(np.mean(self.losses))


class Executor(Protocol):
    """A model at hand: what `offramp.decoding.execution.executor.ModelExecutor` does."""

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
        """Share of the generated tokens that are not the full model's choice: float64 [last - first].

        Of the certify documents number first .. last - 1 in the drawn order.
        """

    def fresh_losses(self, policy: ExitPolicy, kv: str, seen: int, most: int) -> Losses:
        """The same of at most so many documents that nothing was chosen or certified on.

        seen: certify documents that were looked at.
        """
