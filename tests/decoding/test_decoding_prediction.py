"""The rule of when predictions count, on sets of forecasts made up to keep or break it."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from offramp.decoding.measurement.prediction import PredictionVerdict, when_it_counts, worst_part
from offramp.decoding.measurement.results import Forecast, Interval, PartError
from offramp.errors import InputError

PLAIN = 60.0
CHANGES = np.array([-30.0, -20.0, -10.0, -5.0, 5.0, 12.0])


def made_up(predicted: float | None, change: float, **further: Any) -> Forecast:
    """A policy that changes 60 s per token by `change`, predicted to change it by `predicted`."""
    values: dict[str, Any] = {
        "policy": "static:exit=1",
        "kv": "propagate",
        "dtype": "float32",
        "workload": "",
        "predicted": None if predicted is None else PLAIN + predicted,
        "priced": PLAIN + change,
        "measured": Interval(PLAIN + change),
        "plain_predicted": PLAIN,
        "plain_measured": PLAIN,
        "fastest_plain": PLAIN,
        "predicted_skip": None,
        "measured_skip": 0.0,
    }
    return Forecast(**{**values, **further})


def judged(errors: Any) -> PredictionVerdict:
    return when_it_counts([made_up(c + e, c) for c, e in zip(CHANGES, errors, strict=True)])


def failed(verdict: PredictionVerdict) -> list[str]:
    return [check.rule for check in (*verdict.rule, *verdict.figures) if not check.holds]


def test_good_predictions_count() -> None:
    verdict = judged([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    assert verdict.counts
    assert not failed(verdict)
    assert (verdict.policies, verdict.median_error, verdict.median_change) == (6, 1.0, 11.0)
    assert verdict.rule[0].value == pytest.approx(1 / 11)
    assert verdict.rule[1].value == pytest.approx(6 / 82)
    predicted = CHANGES + np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    assert verdict.figures[0].value == pytest.approx(np.polyfit(predicted, CHANGES, 1)[0])
    assert verdict.figures[2].value == pytest.approx(1 / 30)
    assert json.loads(json.dumps(verdict.to_json()))["rule"][0]["holds"] is True
    assert len(verdict.figures) == 3  # what the profile's own seconds were is not kept in these


def test_the_profile_s_own_seconds_stand_beside_and_decide_nothing() -> None:
    """A profile of a machine that was twice as fast: every ratio is right."""
    forecasts = [
        made_up(change, change, predicted_by_profile=(PLAIN + change) / 2, plain_predicted=PLAIN / 2)
        for change in CHANGES
    ]
    verdict = when_it_counts(forecasts)
    assert verdict.counts
    assert failed(verdict) == ["median error of the profile's own seconds"]
    assert verdict.figures[-1].value == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("errors", "broken"),
    [
        # 3 of 11 in the median.
        ([3.0] * 6, ["median error of the change", "median error of seconds", "worst error of seconds"]),
        # A third of every change: the slope, too.
        (-CHANGES / 3, ["median error of the change", "slope", "median error of seconds",
                        "worst error of seconds"]),
        # One prediction that is far off makes "nothing changes" the better one.
        ([0, 0, 0, 0, 0, 83.0], ["sum of errors over", "slope", "worst error of seconds per token"]),
        # "Nothing changes" itself is not better than itself.
        (-CHANGES, ["median error of the change", "sum of errors over", "slope",
                    "median error of seconds", "worst error of seconds"]),
    ],
)  # fmt: skip
def test_each_way_to_fail(errors: Any, broken: list[str]) -> None:
    names = failed(judged(errors))
    assert len(names) == len(broken)
    assert all(name.startswith(start) for name, start in zip(names, broken, strict=True))


def test_nothing_counts_beside_a_defect() -> None:
    forecasts = [made_up(change, change) for change in CHANGES]
    assert when_it_counts(forecasts).counts
    verdict = when_it_counts(forecasts, defect=True)
    assert not verdict.counts
    assert failed(verdict) == ["the measurement has no defect"]


def test_the_cost_model_is_judged_apart_from_the_trace() -> None:
    forecasts = [made_up(change / 2, change) for change in CHANGES]
    assert not when_it_counts(forecasts).counts
    assert when_it_counts(forecasts, given_exits=True).counts


def test_a_single_policy_has_no_slope() -> None:
    verdict = when_it_counts([made_up(-9.0, -10.0)])
    assert verdict.counts
    assert verdict.figures[0].value is None
    assert not verdict.figures[0].holds


def test_nothing_predicted_is_nothing_to_judge() -> None:
    with pytest.raises(InputError, match="no prediction to judge"):
        when_it_counts([made_up(None, -10.0)])


def test_the_part_that_was_most_wrong_is_named() -> None:
    assert worst_part([made_up(0.0, 0.0)]) is None
    parts = (PartError("layers", 0.050, 0.051), PartError("heads", 0.014, 0.010))
    twice = [made_up(0.0, 0.0, parts=parts), made_up(0.0, 0.0, parts=parts)]
    assert worst_part(twice) == (
        "most wrong: heads, priced 4.000 ms a token above the stopwatch on average "
        "(80 % of all parts' errors)"
    )
    below = (PartError("layers", 0.045, 0.051), PartError("heads", 0.014, 0.010))
    named = worst_part([made_up(0.0, 0.0, parts=below)])
    assert named is not None
    assert "layers, priced 6.000 ms a token below" in named
