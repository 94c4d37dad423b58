"""Layers skipped as executed at 95 % agreement: a threshold found by decoding freely."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from offramp.decoding.execution.execution import execute, rows_together
from offramp.decoding.openings import Opening
from offramp.decoding.options import PROPAGATE, DecodingOptions
from offramp.decoding.quality.judging import Judge
from offramp.errors import ModelError
from offramp.models.model import Model
from offramp.tracing.exit_heads import ExitHeads

AGREEMENT = 0.95
VALUES = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999)
"""Thresholds on an exit's largest probability."""


@dataclass(frozen=True)
class Point:
    """What one threshold did when it was executed.

    agreement: share of all new tokens that are the full model's choice on their own prefix. skipped: share of
    the layers of the tokens that were fed, all new ones but the last, that did not run. above: share of them
    above where tokens left: the same, but for recurrent layers, which propagation has to run.
    """

    value: float
    agreement: float
    skipped: float
    above: float


@dataclass(frozen=True)
class Skipped:
    """The share of layers skipped at AGREEMENT, and the thresholds that were executed, ascending.

    Between the two neighbouring thresholds around AGREEMENT it is interpolated linearly in agreement. 0 if
    the largest falls short; that of the smallest if this keeps AGREEMENT already: then it is a lower bound.
    above: likewise of the layers above where tokens left (`Point`).
    """

    share: float
    above: float
    points: tuple[Point, ...]
    prompts: int

    READ_OFF = ("monotone", "bound")

    @property
    def monotone(self) -> bool:
        """Whether agreement never fell from one executed threshold to the next: bisection supposes it."""
        return all(one.agreement <= two.agreement for one, two in itertools.pairwise(self.points))

    @property
    def bound(self) -> bool:
        """Whether the smallest threshold kept AGREEMENT, so that at least so much is skipped."""
        return self.points[0].value == VALUES[0] and self.points[0].agreement >= AGREEMENT


def find_skipped(execute_at: Callable[[float], Point], prompts: int) -> Skipped:
    """Bisect VALUES for the smallest threshold that keeps AGREEMENT. execute_at: decodes with one."""
    points: dict[int, Point] = {}
    short, kept = -1, len(VALUES)  # the last place that falls short, the first that keeps it
    while kept - short > 1:
        place = (short + kept) // 2
        points[place] = execute_at(VALUES[place])
        if points[place].agreement >= AGREEMENT:
            kept = place
        else:
            short = place
    executed = tuple(points[place] for place in sorted(points))
    share, above = _shares(points.get(short), points.get(kept))
    return Skipped(share, above, executed, prompts)


def _shares(short: Point | None, kept: Point | None) -> tuple[float, float]:
    """Both shares at AGREEMENT, from the neighbours that fall short of it and keep it, if there are such."""
    if kept is None:
        return 0.0, 0.0
    if short is None:
        return kept.skipped, kept.above
    part = (AGREEMENT - short.agreement) / (kept.agreement - short.agreement)
    skipped = short.skipped + part * (kept.skipped - short.skipped)
    return skipped, short.above + part * (kept.above - short.above)


def skipped_layers(
    model: Model,
    openings: Sequence[Opening],
    new_tokens: int,
    heads: ExitHeads | None = None,
    told: Callable[[Point], None] = lambda point: None,
) -> Skipped:
    """Decode all prompts side by side with one threshold after the other, each to so many new tokens.

    Greedy, end tokens being tokens like others; K and V of skipped layers are propagated. heads: a lens that
    exits are read through. told: of each threshold that was decoded with.

    Raises ModelError for logits that are not finite, and as `offramp.generate` does.
    """
    longest = new_tokens + max(len(one.ids) for one in openings)
    endless = replace(model, eos_token_ids=())
    judge = Judge(model)

    def execute_at(value: float) -> Point:
        policy = f"threshold:signal=max_prob,value={value:g},exits=all"
        options = DecodingOptions.read(policy, kv=PROPAGATE, heads=heads, new_tokens=new_tokens)
        together = rows_together(endless, options, longest) > 1
        rows = len(openings) if together else 1
        found = execute(endless, openings, options, judge, rows=rows)
        for one in found:
            if one.problem is not None:
                raise ModelError(f"decoding stopped: {one.problem}", where=f"{model.name}, {one.document}")
        layers = sum(one.layers_executed for one in found)
        fed = sum(len(one.answer) - 1 for one in found)
        agreeing = sum(sum(one.agrees) for one in found)
        new = sum(len(one.answer) for one in found)
        run = sum(sum(one.exits[1:]) for one in found)  # the first token is the prompt's
        whole = fed * model.layers
        point = Point(value, agreeing / new, 1.0 - layers / whole, 1.0 - run / whole)
        told(point)
        return point

    return find_skipped(execute_at, len(openings))
