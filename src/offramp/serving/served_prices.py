"""What the steps of a served loop take, fitted to steps that were served."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

from offramp.serving.contenders import LoadContender
from offramp.serving.loop import StepLog
from offramp.serving.prices import Seconds, StepPrices, leaving_rates

KNOTS = np.array([1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024], dtype=np.float64)
"""Rows at which a layer has a time of its own; between them it lies on a straight line."""
OF_ALL, OF_HEAD, OF_ONE = "of all", "of a head", "of one"
PARTS = {
    **dict.fromkeys(("context", "repair", "repair row"), OF_ALL),
    **dict.fromkeys(("final", "final row"), OF_HEAD),
    **dict.fromkeys(("check", "checked row"), OF_ONE),
    **dict.fromkeys(("decoding", "row"), OF_ALL),
    "prompt": OF_HEAD,  # its first token is read off
    **dict.fromkeys(("prompt token", "prompt square", "prompt past"), OF_ALL),
    **dict.fromkeys(("leaving", "leaving row"), OF_ONE),
    "step": OF_ALL,
}
"""What a step is counted in beside its layers, each with a time: the same for all contenders, for those with
the same output head, or for one of them."""
FAR = 0.35
"""Relative error from which on a step was held up by something else, and counts less."""
ROUNDS = 4


def hats(rows: Sequence[int] | NDArray[np.int64]) -> Seconds:
    """Weights of the knots: float64 [rows, knots]; of 0 rows none, beyond the last on its line."""
    wanted = np.asarray(rows, dtype=np.float64)
    below = np.clip(np.searchsorted(KNOTS, wanted, "right") - 1, 0, len(KNOTS) - 2)
    share = (wanted - KNOTS[below]) / (KNOTS[below + 1] - KNOTS[below])
    found = np.zeros((len(wanted), len(KNOTS)))
    places = np.arange(len(wanted))
    found[places, below], found[places, below + 1] = 1.0 - share, share
    return np.where(wanted[:, None] > 0, found, 0.0)


def counted(log: StepLog, depth: int) -> Seconds:
    """A step in knots and PARTS: float64 [knots + parts]."""
    exits = np.array(log.exits, dtype=np.int64)
    rows = len(exits)
    going = (exits[:, None] > np.arange(depth)).sum(0)
    gone = rows - going
    final = int((exits == depth).sum())
    longest = max(log.contexts, default=0)
    tokens = np.array([(count, past) for count, past in log.prompts], dtype=np.float64).reshape(-1, 2)
    parts = (
        *(float(going.sum()) * longest, (gone > 0).sum(), gone.sum(), final > 0, final),
        *(sum(map(bool, log.asked)), sum(log.asked), rows > 0, rows),
        *(len(tokens), tokens[:, 0].sum(), (tokens[:, 0] ** 2).sum(), tokens.prod(1).sum()),
        *(sum(map(bool, log.left)), sum(log.left), 1),
    )
    return np.concatenate([hats(going).sum(0), np.array(parts, dtype=np.float64)])


@dataclass(frozen=True)
class ServedSteps:
    """What a contender's steps ran, and how long each took."""

    contender: LoadContender
    logs: list[StepLog]
    seconds: list[float]


@dataclass(frozen=True)
class FittedSteps:
    """Seconds of a layer at each of KNOTS, and of each of PARTS.

    error: median relative error of its contender's steps.
    """

    layers: Seconds
    parts: dict[str, float]
    error: float

    @classmethod
    def of(cls, served: Sequence[ServedSteps]) -> list[FittedSteps]:
        """Of each contender, fitted to the steps of all; no part takes less than nothing, and no layer less
        for more rows.

        Fitted each on its own, what two differ in would be the difference of two fits' errors.
        """
        knots = len(KNOTS)
        # 1. A column for each knot and each part of each owner; which of them a contender has.
        names: list[tuple[int | str, object]] = [(place, None) for place in range(knots)]
        columns = {name: place for place, name in enumerate(names)}
        own = []
        for steps in served:
            head = steps.contender.rungs[-1].policy.short_head
            owners = {OF_ALL: None, OF_HEAD: head, OF_ONE: steps.contender.name}
            keys = [*names, *((part, owners[of]) for part, of in PARTS.items())]
            own.append([columns.setdefault(key, len(columns)) for key in keys])
        # 2. The steps of all, one below the other.
        blocks = []
        for steps, places in zip(served, own, strict=True):
            block = np.zeros((len(steps.logs), len(columns)))
            block[:, places] = [counted(log, steps.contender.layers) for log in steps.logs]
            blocks.append(block)
        x, y = np.concatenate(blocks), np.concatenate([steps.seconds for steps in served])
        # 3. Rises from knot to knot instead of times: none of them is below 0.
        rising = np.eye(x.shape[1])
        rising[:knots, :knots] = np.tril(np.ones((knots, knots)))
        weights = 1.0 / y
        for _ in range(ROUNDS):
            found = rising @ nnls((x @ rising) * weights[:, None], y * weights)[0]
            off = np.abs(x @ found / y - 1.0)
            weights = np.where(off > FAR, 0.2, 1.0) / y
        # 4. Beyond the last knot that was seen, on the line through the last two.
        layers, seen = found[:knots], x[:, :knots].sum(0) > 0
        last = np.flatnonzero(seen)[-2:] if seen.sum() > 1 else np.array([0, 1])
        slope = (layers[last[1]] - layers[last[0]]) / (KNOTS[last[1]] - KNOTS[last[0]])
        beyond = np.greater(KNOTS, KNOTS[last[-1]])
        layers = np.where(beyond, layers[last[-1]] + slope * (KNOTS - KNOTS[last[-1]]), layers)
        ends = np.cumsum([len(block) for block in blocks])[:-1]
        return [
            cls(
                layers, dict(zip(PARTS, found[places[knots:]].tolist(), strict=True)), float(np.median(error))
            )
            for places, error in zip(own, np.split(off, ends), strict=True)
        ]

    def step_prices(self, contender: LoadContender, rows: int, longest: int) -> StepPrices:
        """As prices of a contender's steps."""
        parts, stops, depth = self.parts, contender.stops, contender.layers
        many = np.arange(rows + 1)
        some = (many > 0).astype(np.float64)
        contexts = np.array([0.0, float(max(longest, 1))])
        sizes = np.diff([0, *stops, depth])[:, None, None]
        layer = (hats(many) @ self.layers)[:, None] + parts["context"] * many[:, None] * contexts

        def linear(once: str, each: str) -> Seconds:
            return np.asarray(parts[once] * some + parts[each] * many)

        def prompt(tokens: int, past: int) -> float:
            square, after = parts["prompt square"] * tokens**2, parts["prompt past"] * tokens * past
            return parts["prompt"] + parts["prompt token"] * tokens + square + after

        repair = np.broadcast_to(linear("repair", "repair row")[:, None], layer.shape)
        probe, head = (
            np.tile(linear(*names), (len(stops), 1))
            for names in (("check", "checked row"), ("leaving", "leaving row"))
        )
        final, overhead = linear("final", "final row"), parts["step"] + linear("decoding", "row")
        answered, rates = np.zeros(len(stops), dtype=np.bool_), leaving_rates(contender)
        return StepPrices(
            *(stops, depth, contexts, sizes * layer, sizes * repair, probe, head),
            answered,
            final,
            overhead,
            prompt,
            0.0,
            rates,
        )
