"""What a rerun found: where given tokens leave, and what is said there, with the policy's own K and V."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from offramp.policies.decisions import Decisions

How = Literal["one parallel forward", "replay, exact K and V", "forced decoding"]


@dataclass(frozen=True)
class Drift:
    """A rerun beside the plain replay of the same decided tokens.

    agreement: what the replay says. exits_moved: share of tokens that leave elsewhere. tokens_changed: share
    whose output is another token.
    """

    agreement: float
    exits_moved: float
    tokens_changed: float


@dataclass(frozen=True)
class RerunResult:
    """One policy on given texts, keys and values as its strategy leaves them.

    kv: the strategy. how: "one parallel forward", "replay, exact K and V" (strategies whose K and V are the
    full model's), or "forced decoding" (policies that remember earlier tokens).
    exits: int64 [tokens], one per row of the trace, L for positions that run whole as a prompt does. top1:
    int64 [tokens], the policy's output. agrees: bool [tokens], whether it is the full model's top-1.
    answered: bool [tokens], rows that predict what decoding would call a new token: those of the prompt but
    its last one are not. decided: bool [tokens], the rows that the policy was asked about.
    agreement: share of the answered rows that agree. skip_ratio: share of the layers of the decided ones that
    are not executed. decisions: exits and probes, as a replay's, for charging. drift: beside the replay, None
    where the trace does not hold what the policy reads.
    """

    policy: str
    kv: str
    how: How
    exits: NDArray[np.int64]
    top1: NDArray[np.int64]
    agrees: NDArray[np.bool_]
    answered: NDArray[np.bool_]
    decided: NDArray[np.bool_]
    agreement: float
    skip_ratio: float
    decisions: Decisions
    drift: Drift | None

    def __repr__(self) -> str:
        return (
            f"RerunResult({self.policy}, {self.kv}: agreement {self.agreement:.1%}, {self.skip_ratio:.1%} of "
            f"the layers skipped, {len(self.exits):,} tokens, {self.how})"
        )
