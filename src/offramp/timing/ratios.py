"""Ratios of seconds with intervals over prompts: over the fastest plain decoder, over all without exits."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from offramp.scoring.estimate import LEVEL, Estimate
from offramp.timing.results import A_A, Cluster, Contender, Credit

Pair = tuple[float, float]
"""Seconds per token of two blocks side by side: the other's, and a contender's own."""


FEWEST_COUNTING = 1.5
"""Prompts that any weights of them count for, at least."""


def cluster_of(
    process: int, prompt: int, pairs: Sequence[Pair], priced: float | None = None, weight: float = 1.0
) -> Cluster:
    """The cluster of some pairs: the other's seconds over its own, summed over blocks. priced, weight: as of
    a `Cluster`.

    The sums, and not the mean of blocks' ratios, nor a trimmed one: where a policy leaves early for some
    blocks and not for others, that would be more than the time that it saves.
    """
    others, own = (math.fsum(seconds) for seconds in zip(*pairs, strict=True))
    return Cluster(process, prompt, math.log(others / own), len(pairs), priced, weight)


def ratio_of(
    clusters: Sequence[Cluster], level: float = LEVEL, prices: Sequence[float] = ()
) -> Estimate[float]:
    """How many times as fast a contender is as the decoder that its clusters are over, on all prompts.

    As `ratio_over`. Raises ValueError without clusters.
    """
    found = ratio_over(clusters, as_fast(clusters), level, prices)
    if found is None:
        raise ValueError("a ratio needs a cluster")
    return found


def as_fast(clusters: Sequence[Cluster]) -> list[Cluster]:
    """Those of the decoder that these are over, over itself, on the same prompts."""
    return [
        replace(cluster, log_ratio=0.0, priced=None if cluster.priced is None else 0.0)
        for cluster in clusters
    ]


def swapped(clusters: Sequence[Cluster]) -> tuple[Cluster, ...]:
    """Those of the decoder that these are over, over the one whose they are."""
    return tuple(
        replace(
            cluster,
            log_ratio=-cluster.log_ratio,
            priced=None if cluster.priced is None else -cluster.priced,
        )
        for cluster in clusters
    )


def less(clusters: Sequence[Cluster], others: Sequence[Cluster]) -> tuple[Cluster, ...]:
    """Of one contender over another, on the prompts of both: log(a/b) - log(a/c) is log(c/b).

    clusters, others: of each over the same decoder.
    """
    over = {(cluster.process, cluster.prompt): cluster for cluster in others}
    return tuple(
        replace(
            cluster,
            log_ratio=cluster.log_ratio - other.log_ratio,
            priced=None if cluster.priced is None or other.priced is None else cluster.priced - other.priced,
            weight=min(cluster.weight, other.weight),
        )
        for cluster in clusters
        if (other := over.get((cluster.process, cluster.prompt))) is not None
    )


def ratio_over(
    clusters: Sequence[Cluster],
    others: Sequence[Cluster],
    level: float = LEVEL,
    prices: Sequence[float] = (),
    others_prices: Sequence[float] = (),
) -> Estimate[float] | None:
    """How many times as fast one contender is as another, on the prompts of both; None where they share none.

    clusters, others: of each over the same decoder. prices, others_prices: of documents that were decoded
    with each, but not timed: what a token takes over one of the full model, by the same price.

    1. A prompt's tokens take x = exp(-log-ratio) times what plain decoding takes. 2. The ratio is the other's
    mean over its own: of times, so that a prompt that takes twice as long counts twice, as for whoever waits.
    3. Its logarithm is as uncertain as the mean of x / mean(x), less the other's (the delta method for
    a ratio of means: Cochran 1977, Sampling Techniques, 6.3).

    Where all that ran has a price, x is that of what ran, which no other work on the machine changes, and the
    ratio of priced means is corrected by the mean of seconds over prices (double sampling with a ratio
    estimator: Cochran 1977, 12.8). There a prompt counts as its weight says: what was timed beside other work
    counts for less. A weight is the same whichever of both was slowed down, so that it favours none. Where
    documents were decoded and not timed, the mean of prices is theirs, which are many more: the timed prompts
    only correct it (the first and the second phase of that sampling), and both parts make the interval.
    """
    shared = _shared([clusters, others])
    if not shared:
        return None
    seconds, timed_prices = (
        np.array([[getattr(cluster, of) for cluster in contender] for contender in shared], dtype=np.float64)
        for of in ("log_ratio", "priced")
    )
    is_priced = not np.isnan(timed_prices).any()  # as numpy has None
    timed = np.exp(-(timed_prices if is_priced else seconds))
    first = [np.array(phase if is_priced else (), dtype=np.float64) for phase in (prices, others_prices)]
    phases = list(zip(first, timed, strict=True))
    own, other = (float((phase if len(phase) else prompts).mean()) for phase, prompts in phases)
    log_ratio = math.log(other / own)
    # Where documents say the mean, the prices of the timed prompts are no part of its noise.
    noise = [0.0 * prompts if len(phase) else prompts / prompts.mean() - 1.0 for phase, prompts in phases]
    residuals = noise[1] - noise[0]
    if not is_priced:
        return _interval(log_ratio, residuals, shared[0], level)
    corrections = np.diff(timed_prices - seconds, axis=0)[0]
    weights = np.array([[cluster.weight for cluster in contender] for contender in shared]).min(0)
    shares = weights / weights.mean()
    correction = float(np.mean(shares * corrections))
    # Of prompts that count for unequal shares, some are next to none (Kish 1965, Survey Sampling, 11.7).
    count = len(shares)
    counting = max(count / float(np.mean(shares**2)), FEWEST_COUNTING)
    own_share = math.sqrt((1.0 - 1.0 / count) / (1.0 - 1.0 / counting))
    residuals = residuals + own_share * shares * (corrections - correction)
    beside = math.fsum(_reach_of_mean(phase, level) ** 2 for phase in first)
    return _interval(log_ratio + correction, residuals, shared[0], level, counting, beside)


def _reach_of_mean(sample: NDArray[np.float64], level: float) -> float:
    """Half-width of the interval of a mean, over the mean; 0 of no sample."""
    count = len(sample)
    if count < 2:
        return 0.0
    error = float(sample.std(ddof=1) / sample.mean()) / math.sqrt(count)
    return student_reach(level, count - 1.0) * error


def product_of(*factors: tuple[float, Sequence[Cluster]], level: float = LEVEL) -> Estimate[float] | None:
    """A product of powers of ratios prompt by prompt, the geometric mean over prompts; None without a prompt.

    It asks whether gains multiply where they are had: of means over prompts they would not, where two save on
    the same ones. factors: a power and a contender's clusters, each over the same plain decoder.
    """
    shared = _shared([clusters for _, clusters in factors])
    if not shared:
        return None
    powers = [power for power, _ in factors]
    logs = np.array(powers) @ np.array([[cluster.log_ratio for cluster in clusters] for clusters in shared])
    mean = float(logs.mean())
    return _interval(mean, logs - mean, shared[0], level)


def _shared(contenders: Sequence[Sequence[Cluster]]) -> list[list[Cluster]]:
    """Clusters of the prompts that all have, in the same order; empty if there is none."""
    tables = [{(cluster.process, cluster.prompt): cluster for cluster in clusters} for clusters in contenders]
    places = sorted(set.intersection(*(set(table) for table in tables)))
    return [[table[place] for place in places] for table in tables] if places else []


def _interval(
    log_ratio: float,
    residuals: NDArray[np.float64],
    clusters: Sequence[Cluster],
    level: float,
    counting: float = math.inf,
    beside: float = 0.0,
) -> Estimate[float]:
    """A ratio with its interval; without one of one cluster. residuals: of the logarithm, by cluster. beside:
    the square of a half-width that comes from elsewhere.

    The variance is robust to what pairs of one prompt, and of one process, share: with several processes the
    sum of both one-way variances less that of the cells (Cameron, Gelbach and Miller 2011, J. Bus. Econ.
    Stat. 29, 238, for a mean), at least the larger of the two; Student's t with one less than the fewer of
    both as degrees of freedom. In one process that is the t interval over prompts.
    """
    groupings = [[cluster.process for cluster in clusters], [cluster.prompt for cluster in clusters]]
    several = [labels for labels in groupings if len(set(labels)) > 1]
    if not several:
        return Estimate(math.exp(log_ratio))
    parts = [_variance(residuals, labels) for labels in several]
    variance = parts[0]
    if len(several) > 1:
        cells = _variance(residuals, list(range(len(residuals))))
        variance = max(parts[0] + parts[1] - cells, *parts)
    freedom = min(float(freedom_of(clusters)), max(1.0, counting - 1.0))
    half = math.sqrt(student_reach(level, freedom) ** 2 * variance + beside)
    return Estimate(math.exp(log_ratio), math.exp(log_ratio - half), math.exp(log_ratio + half))


def freedom_of(clusters: Sequence[Cluster]) -> int:
    """Degrees of freedom of their ratio's interval, 0 without one.

    One less than prompts, or than processes where those are several and fewer.
    """
    processes, prompts = ({getattr(cluster, name) for cluster in clusters} for name in ("process", "prompt"))
    return min((len(groups) for groups in (processes, prompts) if len(groups) > 1), default=1) - 1


@cache
def student_reach(level: float, freedom: float) -> float:
    """How many standard errors an interval of Student's t reaches either way."""
    return float(student.ppf((1.0 + level) / 2.0, freedom))


def _variance(residuals: NDArray[np.float64], groups: Sequence[int]) -> float:
    """Variance of the mean if residuals depend on each other within groups only."""
    labels = np.unique(np.array(groups), return_inverse=True)[1]
    sums = np.bincount(labels, weights=residuals)
    return float(sums @ sums) * len(sums) / (len(sums) - 1) / len(residuals) ** 2


ONE = Estimate(1.0, 1.0, 1.0)
"""Of a decoder over itself."""


def over_fastest(
    names: Sequence[str],
    ratio: Callable[[str, float], Estimate[float] | None],
    level: float = LEVEL,
    *,
    fastest: str | None = None,
) -> tuple[str, Estimate[float]] | None:
    """A speed over the fastest of several decoders, which the same times tell: its name, and the ratio.

    ratio: the speed over one of them at a level, None where nothing says. fastest: the one that all of the
    times show to be it, None for that over which the ratio is least. None where nothing says something.
    The true ratio is the least of the true ratios. The least of the lower limits lies above it only if the
    limit over the decoder that is truly the fastest does: no allowance is needed (Berger 1982, Technometrics
    24, 295). Each of k upper limits may lie below it, so that each is at 1 - (1 - level) / k.
    """
    limits = {name: ratio(name, level) for name in names}
    known = {name: over for name, over in limits.items() if over is not None}
    if not known or len(known) < len(names):
        return None
    fastest = fastest or min(known, key=lambda name: known[name].value)
    value = known[fastest].value
    uppers = [ratio(name, 1.0 - (1.0 - level) / len(names)) for name in names]
    lows = [over.low for over in known.values() if over.low is not None]
    highs = [upper.high for upper in uppers if upper is not None and upper.high is not None]
    if len(lows) < len(names) or len(highs) < len(names):
        return fastest, Estimate(value)
    return fastest, Estimate(value, min(lows), max(min(highs), value))


def credit_of(contenders: Sequence[Contender], plain: str, name: str, floor: float | None) -> Credit | None:
    """As `BenchResult.credit`. plain: the fastest plain decoder, which all clusters are over, by name."""
    contender = next(contender for contender in contenders if contender.name == name)
    rivals = [
        other.name
        for other in contenders
        if other.without_exits and other.answer != "defect" and other.keeps(floor)
        if other.clusters or other.name == plain
    ]
    if not rivals or contender.role == A_A or contender.answer == "defect" or contender.shortage is not None:
        return None
    found = over_fastest(rivals, ratios_of(contenders, plain, contender), contender.level)
    if found is None:
        return None
    over, ratio = found
    if ratio.low is None or ratio.high is None:
        return None
    return Credit(ratio.value, ratio.low, ratio.high, over)


def ratios_of(
    contenders: Sequence[Contender], plain: str, contender: Contender
) -> Callable[[str, float], Estimate[float] | None]:
    """Its speed over another contender's, by name, at a level; None where they share no prompt.

    plain: the decoder that all clusters are over.
    """
    clusters = {other.name: other.clusters for other in contenders}
    prices = {other.name: other.prices for other in contenders}

    def ratio(other: str, level: float) -> Estimate[float] | None:
        if other == contender.name:
            return ONE
        own: Sequence[Cluster] = clusters[contender.name]
        # The fastest plain decoder has no clusters of its own: it is what the others' are over.
        if contender.name == plain:
            own = as_fast(clusters[other])
        theirs = as_fast(own) if other == plain else clusters[other]
        return ratio_over(own, theirs, level, contender.prices, prices[other])

    return ratio


def seconds_over(plain: Estimate[float], ratio: Estimate[float]) -> Estimate[float]:
    """What takes so many times less than the plain decoder, which took that on average.

    So contenders that were timed at different times are on one scale: the load of the machine cancels.
    """
    low = None if ratio.high is None else plain.value / ratio.high
    high = None if ratio.low is None else plain.value / ratio.low
    return Estimate(plain.value / ratio.value, low, high)


SAMPLES_NEEDED = 6
"""Below 6 samples even their extremes hold the median less often than 95 % of the time: 1 - 2 (1/2)^n."""


def median(samples: Sequence[float]) -> Estimate[float]:
    """The median with a 95 % interval, without one of fewer than SAMPLES_NEEDED.

    Interpolated order statistics (Hettmansperger and Sheather 1986, Statistics & Probability Letters 4, 75),
    which cover as often as they say from six samples on, where a bootstrap of the median does not.
    """
    values = np.sort(np.asarray(samples, dtype=np.float64))
    value, count = float(np.median(values)), len(values)
    if count < SAMPLES_NEEDED:
        return Estimate(value)
    rank = next(rank for rank in range(1, count) if _coverage(rank + 1, count) < LEVEL)
    outer, inner = _coverage(rank, count), _coverage(rank + 1, count)
    share = (outer - LEVEL) / (outer - inner)
    weight = (count - rank) * share / (rank + (count - 2 * rank) * share)
    low = (1.0 - weight) * values[rank - 1] + weight * values[rank]
    high = (1.0 - weight) * values[count - rank] + weight * values[count - rank - 1]
    return Estimate(value, float(low), float(high))


def _coverage(rank: int, count: int) -> float:
    """How often the median lies between the samples of this rank from below and from above."""
    outside = sum(math.comb(count, below) for below in range(rank))
    return 1.0 - float(2 * outside / 2**count)
