"""One contender's times beside the plain decoder's as they come, prompt by prompt, and what looks say."""

from __future__ import annotations

from collections.abc import Sequence

from offramp.decoding.bench.answers import is_precise, is_settled
from offramp.decoding.bench.clusters import LEVEL, cluster_of, ratio_of
from offramp.decoding.bench.results import Cluster, Interval


class Series:
    """Log-ratios by prompt. level: of the last look's interval, 0.95 before any."""

    def __init__(self) -> None:
        self.level = LEVEL
        self._pairs: dict[int, list[float]] = {}

    def add(self, prompt: int, log_ratios: Sequence[float]) -> None:
        """Further pairs of a prompt: log(plain seconds / its seconds), timed side by side."""
        self._pairs.setdefault(prompt, []).extend(log_ratios)

    @property
    def clusters(self) -> tuple[Cluster, ...]:
        """One for each prompt, of this process."""
        return tuple(cluster_of(0, prompt, pairs) for prompt, pairs in sorted(self._pairs.items()) if pairs)

    def look(self, level: float) -> Interval | None:
        """The ratio at a look's level; None before any pair."""
        self.level = level
        return self.ratio

    @property
    def ratio(self) -> Interval | None:
        """Plain seconds over its seconds at the level of the last look; None before any pair."""
        clusters = self.clusters
        return ratio_of(clusters, self.level) if clusters else None

    def is_over(self, worth: float) -> bool:
        """Whether nothing more need be timed: settled, or precise."""
        ratio = self.ratio
        return ratio is not None and (is_settled(ratio, worth) or is_precise(ratio))
