"""A linear axis: from data to pixels, with ticks at round numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """Maps low..high of the data to start..end in pixels."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        """The pixel of a value."""
        return self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start)

    def holds(self, value: float) -> bool:
        """Whether a value lies within the axis."""
        return self.low <= value <= self.high

    def ticks(self, count: int = 5) -> list[float]:
        """Round numbers within the range, about `count` of them."""
        return nice_ticks(self.low, self.high, count)


def nice_step(span: float, count: int) -> float:
    """The step of 1, 2 or 5 times a power of ten that comes nearest to `count` ticks over a span."""
    raw = span / count
    power = 10.0 ** math.floor(math.log10(raw))
    return power * min((1, 2, 5, 10), key=lambda factor: abs(math.log(factor * power / raw)))


def nice_ticks(low: float, high: float, count: int = 5) -> list[float]:
    """Multiples of a round step within [low, high]."""
    step = nice_step(high - low, count)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(index * step, 12) for index in range(first, last + 1)]


def nice_range(values: Iterable[float], *, include: tuple[float, ...] = ()) -> tuple[float, float] | None:
    """A range that holds every finite value and ends at round numbers; None if no value is finite."""
    finite = [value for value in values if math.isfinite(value)]
    if not finite:
        return None
    low, high = min([*finite, *include]), max([*finite, *include])
    if high - low < 1e-9:
        margin = 0.1 * abs(low) or 0.1
        low, high = low - margin, high + margin
    step = nice_step(high - low, 5)
    return math.floor(low / step + 1e-9) * step, math.ceil(high / step - 1e-9) * step
