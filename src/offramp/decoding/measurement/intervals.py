"""Intervals of times: of ratios, whose unit are prompts and not pairs, and of medians."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from offramp.decoding.measurement.results import Cluster, Interval

LEVEL = 0.95
TRIMMED = 1 / 8
"""Share of a cluster's pairs that is left out at either end: what a burst of other work spoils."""


def cluster_of(process: int, prompt: int, log_ratios: Sequence[float]) -> Cluster:
    """The cluster of some pairs."""
    return Cluster(process, prompt, trimmed_mean(log_ratios), len(log_ratios))


def trimmed_mean(values: Sequence[float]) -> float:
    """The mean without `TRIMMED` of the values at either end, rounded down."""
    ordered = sorted(values)
    cut = int(len(ordered) * TRIMMED)
    return math.fsum(ordered[cut : len(ordered) - cut]) / (len(ordered) - 2 * cut)


def ratio_of(clusters: Sequence[Cluster], level: float = LEVEL) -> Interval:
    """The ratio that clusters speak of, exp of their mean, with its interval; without one of one cluster.

    level: of the interval. The variance is robust to what pairs of one prompt, and of one process, share:
    with several processes the sum of both one-way variances less that of the cells (Cameron, Gelbach and
    Miller 2011, J. Bus. Econ. Stat. 29, 238, for a mean), at least the larger of the two; Student's t with
    one less than the fewer of both as degrees of freedom. In one process that is the t interval over prompts.

    Raises ValueError without clusters.
    """
    if not clusters:
        raise ValueError("a ratio needs a cluster")
    values = np.array([cluster.log_ratio for cluster in clusters], dtype=np.float64)
    mean = float(values.mean())
    groupings = [[cluster.process for cluster in clusters], [cluster.prompt for cluster in clusters]]
    several = [groups for groups in groupings if len(set(groups)) > 1]
    if not several:
        return Interval(math.exp(mean))
    parts = [_variance(values - mean, groups) for groups in several]
    variance = parts[0]
    if len(several) > 1:
        cells = _variance(values - mean, list(range(len(values))))
        variance = max(parts[0] + parts[1] - cells, *parts)
    freedom = freedom_of(clusters)
    half = _quantile(level, freedom) * math.sqrt(variance)
    return Interval(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def freedom_of(clusters: Sequence[Cluster]) -> int:
    """Degrees of freedom of their mean's interval, 0 without one.

    One less than prompts, or than processes where those are several and fewer.
    """
    processes, prompts = ({getattr(one, name) for one in clusters} for name in ("process", "prompt"))
    return min((len(groups) for groups in (processes, prompts) if len(groups) > 1), default=1) - 1


@cache
def _quantile(level: float, freedom: int) -> float:
    """How many standard errors an interval of Student's t reaches either way."""
    return float(student.ppf((1.0 + level) / 2.0, freedom))


def _variance(residuals: NDArray[np.float64], groups: Sequence[int]) -> float:
    """Variance of the mean if residuals depend on each other within groups only."""
    labels = np.unique(np.array(groups), return_inverse=True)[1]
    sums = np.bincount(labels, weights=residuals)
    return float(sums @ sums) * len(sums) / (len(sums) - 1) / len(residuals) ** 2


def combined_clusters(*weighted: tuple[float, Sequence[Cluster]]) -> list[Cluster]:
    """Weighted sums of log-ratios, cluster by cluster, where all of them have one.

    log(a/b) - log(a/c) is log(c/b): so contenders that took turns are held against each other.
    """
    tables = [{(one.process, one.prompt): one for one in clusters} for _, clusters in weighted]
    shared = sorted(set.intersection(*(set(table) for table in tables)))
    return [
        Cluster(
            *place,
            sum(weight * table[place].log_ratio for (weight, _), table in zip(weighted, tables, strict=True)),
            min(table[place].pairs for table in tables),
        )
        for place in shared
    ]


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
