"""When a timing is an answer (faster, slower, equivalent, unresolved) and when it stops: looks, limits."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Annotated

from offramp.defaults import FEWEST_PROMPTS, TIMING_SECONDS, WORTH
from offramp.kit.arguments import settle_fields
from offramp.kit.numbers import Count, NotNegative
from offramp.kit.rules import Beside, Margin
from offramp.scoring.estimate import LEVEL, Estimate
from offramp.timing.ratios import Pair, cluster_of, over_fastest, ratio_of
from offramp.timing.results import Answer, Cluster

ALPHA = 0.05
"""How often an answer may be wrong, over all looks together."""


PRECISE = 0.015
"""Half-width at which nothing more is timed: 1.5 %."""


FEWEST_TO_BEAT, BEATEN = 4, 0.9
"""Prompts, and the level of an interval, that show a decoder without exits to be slower than another such."""


LOOK_AT, LOOK_SPENDS = (0.35, 0.65), (0.1, 0.2)
"""Shares of the budget at which is looked, and what each look may spend of ALPHA; the last has the rest."""


def answer_of(ratio: Estimate[float], worth: float, clusters: Sequence[Cluster] = ()) -> Answer:
    """What a ratio of seconds (the other's over its own) says at its interval's level.

    clusters: what it comes of, by prompt; of fewer than FEWEST_PROMPTS it says nothing.

    "equivalent" if the interval lies within a factor of 1 + worth either way: two one-sided tests (Schuirmann
    1987, J. Pharmacokinet. Biopharm. 15, 657), each at half of what the interval leaves out, so that answer
    and interval never contradict each other. Then "faster" or "slower" if it leaves out 1, else "unresolved".
    """
    low, high = ratio.low, ratio.high
    prompts = len({cluster.prompt for cluster in clusters}) if clusters else FEWEST_PROMPTS
    if low is None or high is None or prompts < FEWEST_PROMPTS:
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
    """Of all of it, from the loaded model to the answer. None for no limit, 0 for the least that can be
    timed: two visits."""
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

    def until(self, share: float) -> float:
        """Seconds spent when so much of what is left now is used up; infinite without a limit."""
        if not self.seconds:
            return math.inf
        return self.spent + share * max(0.0, self.seconds - self.spent)


FINEST = 0.01
"""Of a block's log-seconds: less noise than this is no merit of a visit."""


@dataclass(frozen=True)
class SideBySide:
    """Two contenders on one visit of a prompt."""

    pairs: Sequence[Pair]
    """Of blocks."""
    prices: Pair | None = None
    """Per token of what each ran, None where one has none."""
    noise: float | None = None
    """Variance of a block's log-seconds beside the others of its round; None: taken as the usual."""


class PairedTimes:
    """Times of one contender beside each decoder without exits that it took turns with, by prompt.

    plain: names of those that decode plainly. beaten: of those that are no rivals any more, whoever adds to
    them. prices: of documents decoded with it before (see `ratio_over`). level: of the last look's interval,
    0.95 before any.
    """

    def __init__(
        self, plain: Collection[str], beaten: Collection[str] = (), prices: Sequence[float] = ()
    ) -> None:
        self.level = LEVEL
        self.prices = tuple(prices)
        self._plain, self._beaten = plain, beaten
        self._visits: dict[str, dict[int, list[SideBySide]]] = {}

    def add(
        self,
        over: str,
        prompt: int,
        pairs: Sequence[Pair],
        prices: Pair | None = None,
        noise: float | None = None,
    ) -> None:
        """Further pairs of a prompt, timed side by side in one visit (see `SideBySide`)."""
        visits = self._visits.setdefault(over, {}).setdefault(prompt, [])
        if pairs:
            visits.append(SideBySide(pairs, prices, noise))

    def clusters(self, over: str) -> tuple[Cluster, ...]:
        """One for each prompt, of this process."""
        visits_of = {prompt: visits for prompt, visits in self._visits.get(over, {}).items() if visits}
        noises = [visit.noise for visits in visits_of.values() for visit in visits if visit.noise is not None]
        usual = median(noises) if noises else None
        found = []
        for prompt, visits in sorted(visits_of.items()):
            prices = [visit.prices for visit in visits if visit.prices is not None]
            priced, weight = None, 1.0
            if len(prices) == len(visits):
                others, own = map(math.fsum, zip(*prices, strict=True))
                priced = math.log(others / own)
            if usual is not None:
                each = (usual if visit.noise is None else visit.noise for visit in visits)
                weight = math.fsum(1.0 / (FINEST**2 + usual / 2 + noise) for noise in each)
            pairs = [pair for visit in visits for pair in visit.pairs]
            found.append(cluster_of(0, prompt, pairs, priced, weight))
        return tuple(found)

    def look(self, level: float) -> None:
        """From now on all ratios are at a look's level."""
        self.level = level

    def ratio(self, over: str) -> Estimate[float] | None:
        """The other's seconds over its own, of this pair alone; None before any pair."""
        return self._ratio(over, self.level)

    def over_plain(self, fastest: str | None = None) -> Estimate[float] | None:
        """Seconds of the fastest plain decoder over its own, as `over_fastest`; None before any pair."""
        return self._over([name for name in self._rivals if name in self._plain], fastest)

    def is_over(self, worth: float) -> bool:
        """Whether nothing more need be timed.

        Its speed over plain decoding, and over whatever needs no early exit, are settled, or precise, on as
        many prompts as an answer needs.
        """
        if any(len(self._visits[name]) < FEWEST_PROMPTS for name in self._rivals):
            return False
        ratios = self.over_plain(), self._over(self._rivals)
        return all(ratio is not None and (is_settled(ratio, worth) or is_precise(ratio)) for ratio in ratios)

    def is_beaten_by(self, other: str) -> bool:
        """Whether it is shown, at `BEATEN`, to be slower than another one."""
        clusters = self.clusters(other)
        if len(clusters) < FEWEST_TO_BEAT:
            return False
        high = ratio_of(clusters, BEATEN).high
        return high is not None and high < 1.0

    @property
    def _rivals(self) -> list[str]:
        return [name for name in self._visits if name not in self._beaten]

    def _over(self, names: Sequence[str], fastest: str | None = None) -> Estimate[float] | None:
        found = over_fastest(names, self._ratio, self.level, fastest=fastest)
        return None if found is None else found[1]

    def _ratio(self, over: str, level: float) -> Estimate[float] | None:
        clusters = self.clusters(over)
        return ratio_of(clusters, level, self.prices) if clusters else None
