"""What agreement costs in right answers: paired differences of the answers that `accuracy.py` kept."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from scipy.stats import binomtest

from offramp.scoring.estimate import Estimate

OF_TEXT = {"cities": "code", "reasoning": "math"}
"""The text that a task's policies were executed on for certificates."""
MARGIN = 0.03
"""A loss of at least so large a share of right answers is one that a user would mind."""


@dataclass(frozen=True)
class Answered:
    """One decoder's answers to a task's questions beside the full model's."""

    model: str
    task: str
    decoder: str
    right: float
    """Share of right answers."""
    same: float
    """Share of answers that are the full model's, word for word."""
    questions: int
    left_out: int
    """Questions that exits were trained on."""
    mean_exit: float
    layers: int
    difference: Estimate[float] | None
    """Share of right answers less the full model's; None for the full model itself."""

    @property
    def shown(self) -> str:
        """What answered: "exits, 95 % on code" is a policy that is to keep so much there."""
        return f"exits, {self.decoder} on {OF_TEXT[self.task]}" if "%" in self.decoder else self.decoder

    @property
    def said(self) -> str:
        """Whether a loss of the margin is excluded."""
        if self.difference is None:
            return ""
        assert self.difference.low is not None
        assert self.difference.high is not None
        if self.difference.low > -MARGIN:
            return "excluded"
        return "shown" if self.difference.high < -MARGIN else "cannot be told"


def paired_difference(right: Sequence[int], reference: Sequence[int]) -> Estimate[float]:
    """Of two shares of right answers to the same questions, with a 95 % interval.

    Newcombe's tenth method (Statistics in Medicine 17, 1998, 2635-2650): Wilson's intervals of both shares,
    and their correlation with a correction for continuity.
    """
    count = len(right)
    both = sum(new and old for new, old in zip(right, reference, strict=True))
    gained, lost = sum(right) - both, sum(reference) - both
    neither = count - both - gained - lost
    # 1. Each share's own interval.
    new, old = sum(right) / count, sum(reference) / count
    limits = [binomtest(hits, count).proportion_ci(method="wilson") for hits in (sum(right), sum(reference))]
    # 2. How far the two go together.
    product = (both + gained) * (lost + neither) * (both + lost) * (gained + neither)
    excess = float(both * neither - gained * lost)
    if excess > 0:
        excess = max(excess - count / 2, 0.0)
    together = excess / math.sqrt(product) if product else 0.0
    # 3. Both at once.
    below, above = new - limits[0].low, limits[1].high - old
    low = new - old - math.sqrt(below**2 - 2 * together * below * above + above**2)
    over, under = limits[0].high - new, old - limits[1].low
    high = new - old + math.sqrt(over**2 - 2 * together * over * under + under**2)
    return Estimate(new - old, low, high)


def answered(folder: Path) -> Iterator[Answered]:
    """Every decoder of every task that was kept, the full model first."""
    for path in sorted(folder.glob("*.json")):
        model, _, task = path.stem.partition("-")
        full, *others = kept = json.loads(path.read_text())
        if full["policy"] is not None or any(other["questions"] != full["questions"] for other in others):
            raise ValueError(f"{path} holds no full model first, or other questions for another decoder")
        for answers in kept:
            (depth,) = answers["offramp"]["depth"][f"offramp-{task}"].values()
            same = [new == old for new, old in zip(answers["answers"], full["answers"], strict=True)]
            yield Answered(
                model=model,
                task=task,
                decoder=answers["name"],
                right=sum(answers["right"]) / len(answers["right"]),
                same=sum(same) / len(same),
                questions=len(same),
                left_out=answers["left_out"],
                mean_exit=depth["mean_exit"],
                layers=answers["offramp"]["layers"],
                difference=None if answers is full else paired_difference(answers["right"], full["right"]),
            )


def points(difference: Estimate[float] | None) -> str:
    """ "−1.2 (−3.0 to +0.7)", in points."""
    if difference is None:
        return ""
    assert difference.low is not None
    assert difference.high is not None
    value, low, high = (
        f"{100 * share:+.1f}".replace("-", "−")
        for share in (difference.value, difference.low, difference.high)
    )
    return f"{value} ({low} to {high})"


def accuracy_markdown(rows: Sequence[Answered]) -> str:
    """A line for each decoder of each task."""
    lines = [
        f"| model, task | decoder | right | points to the full model | the same answer | mean exit "
        f"| a loss of {100 * MARGIN:.0f} points is |",
        "|---|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {row.model}, {row.task}, {row.questions} questions | {row.shown} | {100 * row.right:.1f} % "
        f"| {points(row.difference)} | {'' if row.difference is None else f'{100 * row.same:.1f} %'} "
        f"| {row.mean_exit:.1f} of {row.layers} | {row.said} |"
        for row in rows
    ]
    return "\n".join(lines)
