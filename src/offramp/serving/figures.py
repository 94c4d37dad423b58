"""Figures of a served demand under the names of vLLM's benchmark, with intervals over seeds."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from offramp.scoring.estimate import LEVEL, Estimate
from offramp.serving.results import Figures
from offramp.serving.simulator import ServedDemand
from offramp.timing.ratios import student_reach

TTFT, TPOT, ITL, E2EL = SAMPLED = ("ttft", "tpot", "itl", "e2el")
"""Seconds of a request to its first token, per token after it, between two tokens, and to the last one."""
PERCENTILES = (50, 95, 99)
WARM = 0.1
"""Share of the requests that come first and are not counted: the server is empty before them."""


def sample_of(served: ServedDemand, objectives: Mapping[str, float], warm: float = WARM) -> dict[str, float]:
    """The figures of one demand, by name."""
    demand, first = served.demand, int(warm * len(served.demand))
    times, arrival, counts = served.times[first:], demand.arrival[first:], demand.output[first:]
    starts, ends = (np.array([of[place] for of in times]) for place in (0, -1))
    after = np.maximum(counts - 1, 1)
    seconds = {
        TTFT: starts - arrival,
        TPOT: (ends - starts) / after,
        ITL: np.concatenate([np.diff(of) for of in times]),
        E2EL: ends - arrival,
    }
    span = float(ends.max() - arrival[0])
    found = {
        "request_throughput": len(times) / span,
        "output_throughput": int(counts.sum()) / span,
        "rows": served.row_steps / max(1, served.steps),
        "layers": float(served.layers[first:].sum()) / max(1, int((counts - 1).sum())),
    }
    if served.lost is not None:
        found["agreement"] = 1.0 - float(served.lost[first:].sum()) / int(counts.sum())
    if objectives:
        good = np.all([seconds[name] <= limit for name, limit in objectives.items()], axis=0)
        found["request_goodput"] = int(good.sum()) / span
    seconds[TPOT] = seconds[TPOT][counts > 1]
    for name, values in seconds.items():
        if len(values):
            found[f"mean_{name}"] = float(values.mean())
            for percent in PERCENTILES:
                found[f"p{percent}_{name}"] = float(np.percentile(values, percent))
    return found


def figures_of(samples: Sequence[Mapping[str, float]]) -> Figures:
    """Means over seeds, with intervals; of figures that every seed has."""
    names = [name for name in samples[0] if all(name in sample for sample in samples)]
    return {name: over_seeds([sample[name] for sample in samples]) for name in names}


def over_seeds(values: Sequence[float]) -> Estimate[float]:
    """Their mean with Student's 95 % interval, none of them below 0; of one seed without one."""
    mean, half = float(np.mean(values)), _half_width(values)
    if half is None:
        return Estimate(mean, no_interval="one seed")
    return Estimate(mean, max(0.0, mean - half), mean + half)


def ratio_over_seeds(over: Sequence[float], under: Sequence[float]) -> Estimate[float]:
    """The ratio of two figures that were had on the same demands: its geometric mean, with an interval."""
    logs = np.log(over) - np.log(under)
    mean, half = float(np.mean(logs)), _half_width(logs.tolist())
    if half is None:
        return Estimate(math.exp(mean), no_interval="one seed")
    return Estimate(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def _half_width(values: Sequence[float]) -> float | None:
    if len(values) < 2:
        return None
    return student_reach(LEVEL, len(values) - 1) * float(np.std(values, ddof=1)) / math.sqrt(len(values))
