"""What a replay and a frontier hold."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.policies.bill import Bill
from offramp.policies.gain import Gain


@dataclass(frozen=True)
class ReplayResult:
    """One policy replayed on one trace.

    exits: int64 [tokens], the exit each token leaves at (in lockstep, its step's). probes: int64 [tokens],
    checked exits where it was probed; what is charged, drafts that are made again included, is
    `bill.probes_per_token`.
    agreement: share of tokens whose output equals the full model's. reference_agreement: the same with the
    untransformed full model's, None for a model without transforms. nll_increase, kl: means over tokens, in
    nats.
    skip_ratio: share of the full model's layers that are not executed, sooner or later: one that a K,V
    strategy runs for a token afterwards is not skipped. Below 0 where wrong drafts are run for nothing.
    basis: what `predicted_speedup` is counted in: "bytes moved", or seconds on the machine of that name.
    predicted_speedup: plain cost over policy cost (layers, probes, K,V repair and head) in that basis, at
    this batch size; predicted_speedup_flops: the same in FLOPs; speedup_without_probes: probes left out of
    the bill. probe_share: share of the policy's cost that probes add.
    seconds_per_token, plain_seconds_per_token: on the machine, None without one.
    kv: the strategy for skipped layers' K and V. batch, batching: rows of a step, and how they leave.
    reachable: whether a decoder could follow the policy; an oracle it could not.
    bill: every line of the cost, in bytes or seconds. gain: what each of its parts saves. notes: what to bear
    in mind of its prices, and of documents that the policy or the exit heads have seen.
    """

    policy: str
    exits: NDArray[np.int64]
    probes: NDArray[np.int64]
    agreement: float
    skip_ratio: float
    predicted_speedup: float
    predicted_speedup_flops: float
    speedup_without_probes: float
    probe_share: float
    nll_increase: float
    kl: float
    basis: str
    seconds_per_token: float | None
    plain_seconds_per_token: float | None
    kv: str
    batch: int
    batching: str
    reachable: bool
    bill: Bill
    gain: Gain
    notes: tuple[str, ...]
    reference_agreement: float | None = None

    def __repr__(self) -> str:
        return (
            f"ReplayResult({self.policy}: agreement {self.agreement:.1%}, {self.skip_ratio:.1%} of the "
            f"layers skipped, predicted speed {self.predicted_speedup:.3f} by {self.basis}, "
            f"{len(self.exits):,} tokens)"
        )


@dataclass(frozen=True)
class Frontier:
    """Every distinct operating point of one threshold rule (one signal, one set of exits), float64 [points].

    Points run from the most cautious threshold (never exit) to the boldest. Speedups are plain cost over
    policy cost in bytes moved at batch 1, with probes charged and with probes left out.
    """

    signal: str
    exits: tuple[int, ...]
    threshold: NDArray[np.float64]
    agreement: NDArray[np.float64]
    skip_ratio: NDArray[np.float64]
    speedup: NDArray[np.float64]
    speedup_without_probes: NDArray[np.float64]

    def __repr__(self) -> str:
        return f"Frontier({self.signal} at {len(self.exits)} exits, {len(self.threshold):,} points)"
