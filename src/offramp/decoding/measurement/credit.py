"""Contenders held against each other and against the fastest of several, from what their turns left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from offramp.decoding.measurement.answers import ONE, combined_clusters, over_fastest, ratio_of
from offramp.decoding.measurement.results import A_A, BenchResult, Cluster, Contender, Credit, Interval


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


def ratios_of(result: BenchResult, contender: Contender) -> Callable[[str, float], Interval | None]:
    """Its speed over another contender's, by name, at a level; None where they share no prompt."""

    def ratio(other: str, level: float) -> Interval | None:
        if other == contender.name:
            return ONE
        clusters = clusters_over(result, contender.name, other)
        return ratio_of(clusters, level) if clusters else None

    return ratio


def clusters_over(result: BenchResult, name: str, other: str) -> Sequence[Cluster]:
    """Log-ratios of one contender over another, where both were timed: both were held against the plain one.

    The fastest plain decoder has no clusters of its own: it is what the others' are over.
    """
    signs = {name: 1.0, other: -1.0}
    return combined_clusters(
        *((sign, result.contender(one).clusters) for one, sign in signs.items() if one != result.plain)
    )
