"""Contenders held against each other and against the fastest of several, from what their turns left."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from offramp.scoring.estimate import Estimate
from offramp.timing.answers import ONE, as_fast, over_fastest, ratio_over
from offramp.timing.results import A_A, BenchResult, Cluster, Contender, Credit


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
