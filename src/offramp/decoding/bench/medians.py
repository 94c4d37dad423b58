"""Medians of independent samples, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from offramp.decoding.bench.results import Interval

LEVEL = 0.95
SAMPLES_NEEDED = 6
"""Below 6 samples even their extremes hold the median less often than 95 % of the time: 1 - 2 (1/2)^n."""


def median(samples: Sequence[float]) -> Interval:
    """The median with a 95 % interval, without one of fewer than SAMPLES_NEEDED.

    Interpolated order statistics (Hettmansperger and Sheather 1986, Statistics & Probability Letters 4, 75),
    which cover as often as they say from six samples on, where a bootstrap of the median does not.
    """
    values = np.sort(np.asarray(samples, dtype=np.float64))
    value, count = float(np.median(values)), len(values)
    if count < SAMPLES_NEEDED:
        return Interval(value)
    rank = next(rank for rank in range(1, count) if _coverage(rank + 1, count) < LEVEL)
    outer, inner = _coverage(rank, count), _coverage(rank + 1, count)
    share = (outer - LEVEL) / (outer - inner)
    weight = (count - rank) * share / (rank + (count - 2 * rank) * share)
    low = (1.0 - weight) * values[rank - 1] + weight * values[rank]
    high = (1.0 - weight) * values[count - rank] + weight * values[count - rank - 1]
    return Interval(value, float(low), float(high))


def _coverage(rank: int, count: int) -> float:
    """How often the median lies between the samples of this rank from below and from above."""
    outside = sum(math.comb(count, below) for below in range(rank))
    return 1.0 - float(2 * outside / 2**count)
