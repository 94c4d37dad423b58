"""Accuracy beside agreement as a table: what answers come to, with intervals that hold for few questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from scipy import stats

from offramp.decoding.measurement.results import Interval
from offramp.decoding.quality.judging import mean_of
from offramp.decoding.quality.tasks.task import Question
from offramp.scoring.estimate import document_bootstrap

LEVEL = 0.05


@dataclass(frozen=True)
class Asked:
    """One question as one decoder answered it, or a part of it; the full model's is only right or wrong.

    tokens: new or scored ones; agreeing: those on which the full model agrees; left: those that left early.
    executed, full: layers that ran for the fed ones, and at full depth. seconds, plain_seconds: price of what
    ran, and of plain decoding.
    """

    right: bool = False
    tokens: int = 0
    agreeing: int = 0
    left: int = 0
    executed: int = 0
    full: int = 0
    seconds: float = 0.0
    plain_seconds: float = 0.0

    @classmethod
    def of(cls, right: bool, parts: Sequence[Asked]) -> Asked:
        """A question of its parts."""
        return cls(bool(right), **{name: sum(getattr(part, name) for part in parts) for name in SUMS})


SUMS = ("tokens", "agreeing", "left", "executed", "full", "seconds", "plain_seconds")


def chance_of(questions: Sequence[Question] | Sequence[Mapping[str, Any]]) -> float:
    """What guessing gets: an option at random, or the answer that is most often right, if twice or more."""
    shown = [vars(one) if isinstance(one, Question) else one for one in questions]
    options = [one.get("options") or one.get("choices") for one in shown]
    if all(options):
        return float(np.mean([1.0 / len(one) for one in options if one]))
    most = max(Counter(one.get("solution") or one.get("answer") for one in shown).values())
    return most / len(shown) if most > 1 else 0.0


def exact_interval(right: int, count: int) -> Interval:
    """The 95 % interval of a share by Clopper and Pearson (1934), which holds for few questions too."""
    low = stats.beta.ppf(LEVEL / 2, right, count - right + 1) if right else 0.0
    high = stats.beta.ppf(1 - LEVEL / 2, right + 1, count - right) if right < count else 1.0
    return Interval(right / count, float(low), float(high))


def wilson(right: int, count: int) -> tuple[float, float]:
    """Wilson's (1927) score interval of a share, 95 %."""
    z2, share = float(stats.norm.ppf(1 - LEVEL / 2)) ** 2, right / count
    half = float(np.sqrt(z2 * share * (1 - share) / count + z2**2 / (4 * count**2)))
    middle, scale = share + z2 / (2 * count), 1 + z2 / count
    return (middle - half) / scale, (middle + half) / scale


def paired_interval(policy: Sequence[bool], plain: Sequence[bool]) -> Interval:
    """Share right less the full model's on the same questions, 95 %: Newcombe (1998), paired, method 10."""
    count, pairs = len(policy), Counter(zip(policy, plain, strict=True))
    ours, theirs = sum(policy), sum(plain)
    product = float(pairs[True, True] * pairs[False, False] - pairs[True, False] * pairs[False, True])
    product = max(product - count / 2, 0.0) if product > 0 else product
    size = float(np.sqrt(float(ours * (count - ours) * theirs * (count - theirs))))
    phi = product / size if size else 0.0
    (low, high), (their_low, their_high) = wilson(ours, count), wilson(theirs, count)
    down, up = ours / count - low, high - ours / count
    their_down, their_up = theirs / count - their_low, their_high - theirs / count
    below = np.sqrt(down**2 - 2 * phi * down * their_up + their_up**2)
    above = np.sqrt(up**2 - 2 * phi * up * their_down + their_down**2)
    change = (ours - theirs) / count
    return Interval(change, float(change - below), float(change + above))


@dataclass(frozen=True)
class Row:
    """One decoder on one task.

    above_chance: p of an exact binomial test. change: to the full model, paired; lost, won: questions.
    left: share of the tokens; skipped: of the layers of the fed ones. speed: over plain decoding. All None
    for the full model.
    """

    task: str
    decoder: str
    questions: int
    accuracy: Interval
    chance: float
    above_chance: float
    change: Interval | None = None
    lost: int = 0
    won: int = 0
    tokens: int = 0
    agreement: Interval | None = None
    left: float | None = None
    skipped: float | None = None
    speed: float | None = None

    @property
    def near_chance(self) -> bool:
        """Whether guessing may have done as well."""
        return self.above_chance > LEVEL

    def cells(self) -> tuple[str, ...]:
        """For the table."""
        accuracy = f"{_percent(self.accuracy)}{', near chance' if self.near_chance else ''}"
        if self.change is None:
            return self.decoder, accuracy, "", "", "", "", ""
        points = ["–" if one is None else f"{100 * one:+.0f}" for one in vars(self.change).values()]
        return (
            self.decoder,
            accuracy,
            f"{points[0]} ({points[1]} to {points[2]})",
            "–" if self.agreement is None else _percent(self.agreement, 1),
            *("–" if one is None else f"{100 * one:.1f} %" for one in (self.left, self.skipped)),
            "–" if self.speed is None else f"{self.speed:.3f} ×",
        )


def _percent(one: Interval, digits: int = 0) -> str:
    between = (
        ""
        if one.low is None or one.high is None
        else f" ({100 * one.low:.{digits}f} to {100 * one.high:.{digits}f})"
    )
    return f"{100 * one.value:.{digits}f} %{between}"


def row_of(
    task: str, decoder: str, chance: float, found: Sequence[Asked], plain: Sequence[Asked] | None
) -> Row:
    """What the answers to one task's questions come to; plain: the full model's, None for its own row."""
    right, count = [one.right for one in found], len(found)
    row = Row(
        task=task,
        decoder=decoder,
        questions=count,
        accuracy=exact_interval(sum(right), count),
        chance=chance,
        above_chance=float(stats.binom.sf(sum(right) - 1, count, chance)),
    )
    if plain is None:
        return row
    sums = {name: np.array([getattr(one, name) for one in found], dtype=np.float64) for name in SUMS}
    total = {name: float(values.sum()) for name, values in sums.items()}
    theirs = [one.right for one in plain]
    resampled = document_bootstrap(count, draws=2000, seed=0)
    return replace(
        row,
        change=paired_interval(right, theirs),
        lost=sum(one and not other for one, other in zip(theirs, right, strict=True)),
        won=sum(one and not other for one, other in zip(right, theirs, strict=True)),
        tokens=int(total["tokens"]),
        agreement=mean_of(resampled, sums["agreeing"], sums["tokens"]),
        left=total["left"] / total["tokens"] if total["tokens"] else None,
        skipped=1.0 - total["executed"] / total["full"] if total["full"] else None,
        speed=total["plain_seconds"] / total["seconds"] if total["seconds"] else None,
    )


TITLES = (
    "decoder",
    "accuracy",
    "points to full model",
    "agreement",
    "left early",
    "layers skipped",
    "speed, predicted",
)


def show(rows: Sequence[Row]) -> None:
    """One task's rows as a table in Markdown."""
    first = rows[0]
    guess = f"{first.questions} questions, chance {100 * first.chance:.0f} %"
    print(f"\n**{first.task}** ({guess})\n\n| {' | '.join(TITLES)} |\n|{'---|' * len(TITLES)}")
    for row in rows:
        print(f"| {' | '.join(row.cells())} |", flush=True)
