"""What a replay, a frontier and a verdict hold."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from offramp.scoring.estimate import Estimate

Decision = Literal["pays", "does not pay", "too close to call"]


@dataclass(frozen=True)
class ReplayResult:
    """One policy replayed on one trace.

    exits: int64 [tokens], the exit each token leaves at. probes: int64 [tokens], checks made before leaving.
    agreement: share of tokens whose exit's top-1 equals the full model's.
    skip_ratio: share of layers not executed. probe_share: share of the policy's bytes that probes add.
    predicted_speedup: plain cost over policy cost (layers, probes, K,V repair and head), in bytes moved at
    batch 1; predicted_speedup_flops: the same in FLOPs; speedup_without_probes: probes left out of the bill.
    nll_increase, kl: means over tokens, nats.
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


@dataclass(frozen=True)
class Verdict:
    """Whether early exit pays at one quality floor: chosen on one half of the documents, judged on the other.

    policy: the chosen policy's text, "never" if no policy beat the full model on the first half.
    agreement, skip_ratio, net_speedup: on the documents that the choice never saw.
    documents_needed: documents without a loss that a certificate of this floor at delta = 0.1 needs at least.
    """

    floor: float
    decision: Decision
    reason: str
    policy: str
    agreement: Estimate
    skip_ratio: Estimate
    net_speedup: Estimate
    net_speedup_flops: Estimate
    fit_agreement: float
    fit_documents: int
    report_documents: int
    documents_needed: int
    floor_held: bool
