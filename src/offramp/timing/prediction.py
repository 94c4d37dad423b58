"""When a prediction counts: forecasts of several policies judged together by a rule set down beforehand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError
from offramp.timing.results import Forecast

LARGEST_RATIO = 0.2
"""Of the median error of the change to the median change."""
SLOPE = (0.9, 1.1)
RAW_MEDIAN, RAW_WORST = 0.05, 0.10
DEFECT = "the measurement has no defect"

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Check:
    """One condition."""

    rule: str
    """In words."""
    value: float | None
    limit: tuple[float, float]
    """As numbers; value None where it cannot be judged."""
    holds: bool


@dataclass(frozen=True)
class PredictionVerdict:
    """Whether predictions count, judged on changes: seconds per token less the full model's of that time."""

    counts: bool
    """Whether every check of the rule holds."""
    rule: tuple[Check, ...]
    """The checks that decide it."""
    figures: tuple[Check, ...]
    """Further ones, of raw seconds per token and of the slope."""
    policies: int
    """How many forecasts."""
    median_error: float
    median_change: float
    """Medians of |predicted - measured change| and of |measured change|."""
    worst_part: str | None = None
    """A sentence on the part of time that was most wrong, None where no parts were timed."""


def when_it_counts(
    forecasts: Sequence[Forecast], *, defect: bool = False, given_exits: bool = False
) -> PredictionVerdict:
    """Judge predicted changes against measured ones: predicted as ratios to plain decoding (see `Forecast`).

    The rule: the median |predicted - measured change| is at most 0.2 of the median |measured change|, and the
    predictions are better than "nothing changes" (a smaller sum of errors). Nothing counts beside a
    measurement with a defect.
    defect: whether any measurement has one. given_exits: judge the cost model alone, on what really ran,
    instead of the replayed predictions.

    Raises InputError without forecasts that hold a prediction.
    """
    if not given_exits:
        forecasts = [forecast for forecast in forecasts if forecast.predicted is not None]
    if not forecasts:
        raise InputError(
            "there is no prediction to judge", where="forecasts", fix="give a trace to predict from"
        )
    totals = np.array(
        [forecast.priced if given_exits else forecast.predicted for forecast in forecasts], dtype=np.float64
    )
    measured = np.array([forecast.measured.value for forecast in forecasts])
    plain = np.array([forecast.plain_measured for forecast in forecasts])
    predicted_change, change = totals - plain, measured - plain
    error, raw = np.abs(predicted_change - change), np.abs(totals / measured - 1.0)
    median_error, median_change = float(np.median(error)), float(np.median(np.abs(change)))
    rule = [
        _within("median error of the change over the median change", _over(median_error, median_change),
                (0.0, LARGEST_RATIO)),
        _below_one("sum of errors over that of the prediction that nothing changes",
                   _over(float(error.sum()), float(np.abs(change).sum()))),
    ]  # fmt: skip
    if defect:
        rule.append(Check(DEFECT, None, (1.0, 1.0), False))
    figures = (
        _within("slope of measured on predicted change", _slope(predicted_change, change), SLOPE),
        _within("median error of seconds per token", float(np.median(raw)), (0.0, RAW_MEDIAN)),
        _within("worst error of seconds per token", float(raw.max()), (0.0, RAW_WORST)),
        *_by_profile(forecasts, given_exits),
    )
    return PredictionVerdict(
        counts=all(check.holds for check in rule),
        rule=tuple(rule),
        figures=figures,
        policies=len(forecasts),
        median_error=median_error,
        median_change=median_change,
        worst_part=worst_part(forecasts),
    )


def _by_profile(forecasts: Sequence[Forecast], given_exits: bool) -> tuple[Check, ...]:
    """The error of the profile's own seconds, which a machine that has become slower adds to; where kept."""
    pairs = [
        (
            forecast.priced_by_profile if given_exits else forecast.predicted_by_profile,
            forecast.measured.value,
        )
        for forecast in forecasts
    ]
    errors = [abs(seconds / measured - 1.0) for seconds, measured in pairs if seconds is not None]
    if len(errors) < len(forecasts):
        return ()
    return (
        _within("median error of the profile's own seconds", float(np.median(errors)), (0.0, RAW_MEDIAN)),
    )


def worst_part(forecasts: Sequence[Forecast]) -> str | None:
    """Which part of a token's time was most wrong over all forecasts, as a sentence; None without parts."""
    errors: dict[str, list[float]] = {}
    for forecast in forecasts:
        for part in forecast.parts:
            errors.setdefault(part.part, []).append(part.priced - part.measured)
    if not errors:
        return None
    name = max(errors, key=lambda part: float(np.mean(np.abs(errors[part]))))
    mean = float(np.mean(errors[name]))
    total = float(sum(np.mean(np.abs(values)) for values in errors.values()))
    share = float(np.mean(np.abs(errors[name]))) / total if total else 0.0
    direction = "above" if mean > 0 else "below"
    return (
        f"most wrong: {name}, priced {1e3 * abs(mean):.3f} ms a token {direction} the stopwatch on average "
        f"({100 * share:.0f} % of all parts' errors)"
    )


def _over(part: float, whole: float) -> float | None:
    return part / whole if whole else None


def _slope(predicted: Values, measured: Values) -> float | None:
    """Least squares with an intercept, None where the predictions are all one."""
    spread = predicted - predicted.mean()
    square = float(spread @ spread)
    return float(spread @ measured) / square if square else None


def _within(rule: str, value: float | None, limit: tuple[float, float]) -> Check:
    return Check(rule, value, limit, value is not None and limit[0] <= value <= limit[1])


def _below_one(rule: str, value: float | None) -> Check:
    return Check(rule, value, (0.0, 1.0), value is not None and value < 1.0)
