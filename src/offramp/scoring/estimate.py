"""A figure with its interval over documents, or why there is none; the bootstrap behind both; ranks."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated, Any, Generic

import numpy as np
from annotated_types import Ge, Le
from numpy.typing import NDArray
from typing_extensions import TypeVar

from offramp.kit.numbers import Number


def require_ordered(low: float | None, high: float | None) -> None:
    """Raise ValueError for an interval whose ends are the wrong way round."""
    if low is not None and high is not None and low > high:
        raise ValueError(f"its interval begins at {low:g}, above its end {high:g}")


Value = TypeVar("Value", covariant=True, default=Number | None)
"""Of an estimate: a number, or None where it may be undefined."""


@dataclass(frozen=True)
class Estimate(Generic[Value]):
    """A value with an interval, 95 % where nothing else is said; `Estimate[float]` is never undefined.

    value: None if the figure is undefined; `undefined` then says why.
    low, high: None where there is no interval (too few documents or samples, a biased figure); `no_interval`
    says why, if that is not plain from where it stands.
    """

    value: Value
    low: Number | None = None
    high: Number | None = None
    undefined: str | None = None
    no_interval: str | None = None

    def __post_init__(self) -> None:
        require_ordered(self.low, self.high)  # a percentile interval need not hold the value

    def scaled(self, factor: float) -> Estimate[Value]:
        """The estimate times a positive constant; what is undefined stays so."""
        scaled: dict[str, Any] = {
            name: None if getattr(self, name) is None else getattr(self, name) * factor
            for name in ("value", "low", "high")
        }
        return replace(self, **scaled)


DOCUMENTS_NEEDED = 20
DRAWS_NEEDED = 40
MOST_DRAWS = 100_000
Draws = Annotated[int, Ge(DRAWS_NEEDED), Le(MOST_DRAWS)]
"""Of fewer the outer 2.5 % would hold no draw; more tell no more."""
LEVEL = 0.95
# A figure that is undefined in more draws than this has no honest percentile interval.
UNDEFINED_DRAWS_ALLOWED = 0.05

Values = NDArray[np.float64]


@dataclass(frozen=True)
class DocumentBootstrap:
    """Documents drawn with replacement, as weights.

    weights: float64 [1 + draws, documents], how often each document is drawn. Row 0 is the trace itself (all
    ones), so that a figure and its draws come out of one formula; it is the only row without an interval.
    no_interval: why there are no draws, None if there are.

    Tokens of one document depend on each other; only whole documents are drawn (block bootstrap, Künsch 1989;
    percentile interval, Efron 1979).
    """

    weights: Values
    no_interval: str | None

    def totals(self, sums: Values) -> Values:
        """Totals of each draw: per-document sums [documents, ...] -> [1 + draws, ...]."""
        return np.asarray(self.weights @ sums)

    def means(self, sums: Values, counts: Values) -> Values:
        """Means of each draw: sums [documents, ...] over counts [documents] -> [1 + draws, ...]."""
        totals = self.totals(sums)
        tokens = self.totals(counts)
        return np.asarray(totals / tokens.reshape(-1, *[1] * (totals.ndim - 1)))

    def estimate(self, values: Values) -> Estimate[float]:
        """The estimate behind values [1 + draws]: row 0 is the figure, the others give the 95 % interval."""
        value = float(values[0])
        if self.no_interval is not None:
            return Estimate(value, no_interval=self.no_interval)
        defined = values[1:][np.isfinite(values[1:])]
        undefined = 1.0 - len(defined) / len(values[1:])
        if undefined > UNDEFINED_DRAWS_ALLOWED:
            return Estimate(value, no_interval=f"undefined in {undefined:.0%} of the resampled traces")
        low, high = _percentiles(defined)
        return Estimate(value, low=float(low), high=float(high))

    def interval(self, values: Values) -> tuple[Values, Values] | None:
        """The 95 % limits of a curve: values [1 + draws, exits] -> (low, high), each float64 [exits].

        None without draws; NaN at exits where the figure is undefined in some draw.
        """
        if self.no_interval is not None:
            return None
        low, high = _percentiles(values[1:])
        return low, high


def document_bootstrap(documents: int, *, draws: int, seed: int) -> DocumentBootstrap:
    """Draw `documents` documents with replacement, `draws` times: multinomial counts.

    Fewer than 20 documents: no draws, and `no_interval` says so.
    """
    itself = np.ones((1, documents))
    if documents < DOCUMENTS_NEEDED:
        noun = "document" if documents == 1 else "documents"
        return DocumentBootstrap(itself, f"{documents} {noun}; an interval needs {DOCUMENTS_NEEDED}")
    generator = np.random.default_rng(seed)
    drawn = generator.multinomial(documents, np.full(documents, 1.0 / documents), size=draws)
    return DocumentBootstrap(np.concatenate([itself, drawn.astype(np.float64)]), None)


def _percentiles(draws: Values) -> tuple[Values, Values]:
    tail = 50.0 * (1.0 - LEVEL)
    low, high = np.percentile(draws, [tail, 100.0 - tail], axis=0)
    return np.asarray(low), np.asarray(high)


def number(value: float | None) -> float | None:
    """A finite number, null for anything else."""
    return None if value is None or not math.isfinite(value) else float(value)


BASES_NEEDED = 12
"""Independently trained models below which nothing is said of models in general."""


def kendall(firsts: Values, second: Values, weights: Values) -> Values:
    """Kendall's tau-b (Kendall 1945) of each first with the second: float64 [draws, others].

    firsts: float64 [others, points]; second: float64 [points]; weights: float64 [draws, points], how often
    each point is drawn. A point drawn twice is tied with itself in both coordinates, and so counts in no pair
    with itself. NaN where all drawn points are tied in one coordinate.
    """
    above, below = np.triu_indices(len(second), k=1)
    drawn = weights[:, above] * weights[:, below]
    known, signs = _pairs_of(firsts, above, below)
    known_too, other = _pairs_of(second[None], above, below)
    untied = (drawn @ (np.abs(signs) * known_too)) * (drawn @ (np.abs(other) * known))
    return _ratio(drawn @ (signs * other), np.sqrt(untied))


def _pairs_of(values: Values, above: NDArray[np.int64], below: NDArray[np.int64]) -> tuple[Values, Values]:
    """Of each pair: whether both points have a value, the sign of their difference: [pairs, others] x 2."""
    parts = [_signs(row) for row in values]
    known, signs = (np.stack([part[which][above, below] for part in parts], axis=1) for which in (0, 1))
    return known, signs


def _signs(values: Values) -> tuple[Values, Values]:
    """Whether two points have a value, as 0 or 1, and the sign of their difference: [points, points] x 2."""
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    both = (known[:, None] & known[None, :]).astype(np.float64)
    return both, np.sign(filled[:, None] - filled[None, :]) * both


def _ratio(above: NDArray[Any], below: NDArray[Any]) -> Values:
    found: Values = np.divide(above, below, out=np.full(np.shape(above), np.nan), where=below > 0.0)
    return found
