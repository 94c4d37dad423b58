"""What a timing answers, and when: ratios with intervals over prompts, looked at within limits."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

from offramp.kit.arguments import settle_fields
from offramp.kit.defaults import TIMING_SECONDS, WORTH
from offramp.kit.numbers import Count, NotNegative
from offramp.kit.rules import Beside, Margin
from offramp.scoring.estimate import LEVEL, Estimate
from offramp.timing.results import A_A, Answer, BenchResult, Cluster, Contender, Credit

Pair = tuple[float, float]
"""Seconds per token of two blocks side by side: the other's, and a contender's own."""


def cluster_of(process: int, prompt: int, pairs: Sequence[Pair]) -> Cluster:
    """The cluster of some pairs: the other's seconds over its own, summed over blocks.

    The sums, and not the mean of blocks' ratios, nor a trimmed one: where a policy leaves early for some
    blocks and not for others, that would be more than the time that it saves.
    """
    others, own = (math.fsum(seconds) for seconds in zip(*pairs, strict=True))
    return Cluster(process, prompt, math.log(others / own), len(pairs))


def ratio_of(clusters: Sequence[Cluster], level: float = LEVEL) -> Estimate[float]:
    """How many times as fast a contender is as the decoder that its clusters are over, on all prompts.

    As `ratio_over`. Raises ValueError without clusters.
    """
    found = ratio_over(clusters, as_fast(clusters), level)
    if found is None:
        raise ValueError("a ratio needs a cluster")
    return found


def as_fast(clusters: Sequence[Cluster]) -> list[Cluster]:
    """Those of the decoder that these are over, over itself, on the same prompts."""
    return [replace(cluster, log_ratio=0.0) for cluster in clusters]


def ratio_over(
    clusters: Sequence[Cluster], others: Sequence[Cluster], level: float = LEVEL
) -> Estimate[float] | None:
    """How many times as fast one contender is as another, on the prompts of both; None where they share none.

    clusters, others: of each over the same decoder.

    1. A prompt's tokens take x = exp(-log-ratio) times what plain decoding takes. 2. The ratio is the other's
    mean over its own: of times, so that a prompt that takes twice as long counts twice, as for whoever waits.
    3. Its logarithm is as uncertain as the mean of x / mean(x), less the other's (the delta method for
    a ratio of means: Cochran 1977, Sampling Techniques, 6.3).
    """
    shared = _shared([clusters, others])
    if not shared:
        return None
    own, other = (np.exp([-cluster.log_ratio for cluster in contender]) for contender in shared)
    residuals = other / other.mean() - own / own.mean()
    return _interval(math.log(other.mean() / own.mean()), residuals, shared[0], level)


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
    log_ratio: float, residuals: NDArray[np.float64], clusters: Sequence[Cluster], level: float
) -> Estimate[float]:
    """A ratio with its interval; without one of one cluster. residuals: of the logarithm, by cluster.

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
    half = _quantile(level, freedom_of(clusters)) * math.sqrt(variance)
    return Estimate(math.exp(log_ratio), math.exp(log_ratio - half), math.exp(log_ratio + half))


def freedom_of(clusters: Sequence[Cluster]) -> int:
    """Degrees of freedom of their ratio's interval, 0 without one.

    One less than prompts, or than processes where those are several and fewer.
    """
    processes, prompts = ({getattr(cluster, name) for cluster in clusters} for name in ("process", "prompt"))
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


def credit_of(result: BenchResult, name: str, floor: float | None) -> Credit | None:
    """As `BenchResult.credit`."""
    contender = result.contender(name)
    rivals = [
        other.name
        for other in result.contenders
        if other.without_exits and other.answer != "defect" and other.keeps(floor)
        if other.clusters or other.name == result.plain
    ]
    if not rivals or contender.role == A_A or contender.answer == "defect":
        return None
    found = over_fastest(rivals, ratios_of(result, contender), contender.level)
    if found is None:
        return None
    over, ratio = found
    if ratio.low is None or ratio.high is None:
        return None
    return Credit(ratio.value, ratio.low, ratio.high, over)


def ratios_of(result: BenchResult, contender: Contender) -> Callable[[str, float], Estimate[float] | None]:
    """Its speed over another contender's, by name, at a level; None where they share no prompt."""

    def ratio(other: str, level: float) -> Estimate[float] | None:
        if other == contender.name:
            return ONE
        own: Sequence[Cluster] = result.contender(contender.name).clusters
        others = result.contender(other).clusters
        # The fastest plain decoder has no clusters of its own: it is what the others' are over.
        if contender.name == result.plain:
            own = as_fast(others)
        return ratio_over(own, as_fast(own) if other == result.plain else others, level)

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


ALPHA = 0.05
"""How often an answer may be wrong, over all looks together."""
PRECISE = 0.015
"""Half-width at which nothing more is timed: 1.5 %."""
LOOK_AT, LOOK_SPENDS = (0.35, 0.65), (0.1, 0.2)
"""Shares of the budget at which is looked, and what each look may spend of ALPHA; the last has the rest."""


def answer_of(ratio: Estimate[float], worth: float) -> Answer:
    """What a ratio of seconds (the other's over its own) says at its interval's level.

    "equivalent" if the interval lies within a factor of 1 + worth either way: two one-sided tests (Schuirmann
    1987, J. Pharmacokinet. Biopharm. 15, 657), each at half of what the interval leaves out, so that answer
    and interval never contradict each other. Then "faster" or "slower" if it leaves out 1, else "unresolved".
    """
    low, high = ratio.low, ratio.high
    if low is None or high is None:
        return "unresolved"
    if low > 1.0 / (1.0 + worth) and high < 1.0 + worth:
        return "equivalent"
    return "faster" if low > 1.0 else "slower" if high < 1.0 else "unresolved"


def resolution_of(ratio: Estimate[float]) -> float | None:
    """The half-width of a ratio's interval, as a share of the ratio; None without an interval."""
    if ratio.low is None or ratio.high is None:
        return None
    return math.sqrt(ratio.high / ratio.low) - 1.0


def is_settled(ratio: Estimate[float], worth: float) -> bool:
    """Whether a difference is shown that matters: the whole interval lies beyond 1 + worth, either way.

    What is equivalent, or only surely different, is timed on until it is precise.
    """
    low, high = ratio.low, ratio.high
    return low is not None and high is not None and (low > 1.0 + worth or high < 1.0 / (1.0 + worth))


def is_precise(ratio: Estimate[float]) -> bool:
    """Whether the half-width is small enough to stop."""
    found = resolution_of(ratio)
    return found is not None and found <= PRECISE


@dataclass
class Looks:
    """A fixed schedule of looks at a growing series of times, each at a level of its own.

    Looks are due when shares `at` of the budget are used up, whatever was timed, and the last one when the
    series ends. They spend `alpha` between them (Lan and DeMets 1983, Biometrika 70, 659), added up by the
    union bound, which holds however the looks depend on each other. The intervals are so repeated confidence
    intervals (Jennison and Turnbull 1989, J. R. Stat. Soc. B 51, 305): all of them hold together with
    probability 1 - alpha, and the series may stop at any look for any reason.
    """

    alpha: float = ALPHA
    at: Sequence[float] = LOOK_AT
    spends: Sequence[float] = LOOK_SPENDS
    made: int = 0
    spent: float = 0.0

    def due(self, used: float) -> float | None:
        """The level of the look that is due once a share of the budget is used, None if none is due.

        A look that was passed over gives what it could have spent to the last one.
        """
        passed = sum(used >= at for at in self.at)
        if passed <= self.made or used >= 1.0:
            return None
        self.made = passed
        spends = self.alpha * self.spends[passed - 1]
        self.spent += spends
        return 1.0 - spends

    def last(self) -> float:
        """The level of the last look: all that is left."""
        return 1.0 - (self.alpha - self.spent)


@dataclass(frozen=True)
class TimeLimits:
    """When a measurement ends."""

    seconds: Annotated[
        NotNegative | None,
        Beside(
            lambda seconds, given: seconds is not None or given.rounds is not None,
            "given where rounds are not",
            "limit the seconds, or the rounds",
        ),
    ] = TIMING_SECONDS
    """Of all of it, trials included, None for no limit; two visits are always made."""
    rounds: Count | None = None
    """How often each batch of prompts is decoded, at most, None for no limit."""
    worth: Margin = WORTH
    """The gain that matters, as a share."""
    looks: bool = True
    """Whether it may end before the seconds are over, as soon as its questions are answered."""

    def __post_init__(self) -> None:
        settle_fields(self)


class Budget:
    """Counts seconds from now on. seconds: that there are, None for as many as it takes."""

    def __init__(self, seconds: float | None = None) -> None:
        self.seconds = seconds
        self._began = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds so far."""
        return time.monotonic() - self._began

    @property
    def used(self) -> float:
        """Share of the seconds that is spent; 0 without a limit, 1 at once if there are none."""
        if self.seconds is None:
            return 0.0
        return self.spent / self.seconds if self.seconds > 0.0 else 1.0

    def has(self, seconds: float) -> bool:
        """Whether so many more seconds are left."""
        return self.seconds is None or self.spent + seconds <= self.seconds


class PairedTimes:
    """Times of one contender beside each decoder without exits that it took turns with, by prompt.

    plain: names of those that decode plainly. level: of the last look's interval, 0.95 before any.
    """

    def __init__(self, plain: Collection[str]) -> None:
        self.level = LEVEL
        self._plain = plain
        self._pairs: dict[str, dict[int, list[Pair]]] = {}

    def add(self, over: str, prompt: int, pairs: Sequence[Pair]) -> None:
        """Further pairs of a prompt, timed side by side."""
        self._pairs.setdefault(over, {}).setdefault(prompt, []).extend(pairs)

    def clusters(self, over: str) -> tuple[Cluster, ...]:
        """One for each prompt, of this process."""
        pairs_of = self._pairs.get(over, {})
        return tuple(cluster_of(0, prompt, pairs) for prompt, pairs in sorted(pairs_of.items()) if pairs)

    def look(self, level: float) -> None:
        """From now on all ratios are at a look's level."""
        self.level = level

    def ratio(self, over: str) -> Estimate[float] | None:
        """The other's seconds over its own, of this pair alone; None before any pair."""
        return self._ratio(over, self.level)

    def over_plain(self, fastest: str | None = None) -> Estimate[float] | None:
        """Seconds of the fastest plain decoder over its own, as `over_fastest`; None before any pair."""
        return self._over([name for name in self._pairs if name in self._plain], fastest)

    def is_over(self, worth: float) -> bool:
        """Whether nothing more need be timed.

        Its speed over plain decoding, and over whatever needs no early exit, are settled, or precise.
        """
        ratios = self.over_plain(), self._over(list(self._pairs))
        return all(ratio is not None and (is_settled(ratio, worth) or is_precise(ratio)) for ratio in ratios)

    def _over(self, names: Sequence[str], fastest: str | None = None) -> Estimate[float] | None:
        found = over_fastest(names, self._ratio, self.level, fastest=fastest)
        return None if found is None else found[1]

    def _ratio(self, over: str, level: float) -> Estimate[float] | None:
        clusters = self.clusters(over)
        return ratio_of(clusters, level) if clusters else None
