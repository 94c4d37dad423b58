"""One verdict in words: what is kept as executed, at what speed, against which worth."""

from __future__ import annotations

from offramp.report.basis import machine_name
from offramp.report.credit import CUT
from offramp.report.formats import (
    faster,
    gain_text,
    interval_text,
    percent,
    timed_interval,
    times,
    too_wide,
)
from offramp.tuning.results import Speed, Verdict


def speed_words(verdict: Verdict) -> str:
    """ "measured 1.081 × (1.061 to 1.099)" or "predicted ..."; what is missing where there is none."""
    speed = verdict.speed
    if speed is None:
        return "without a speed"
    limits = timed_interval(speed.value, speed.low, speed.high, times)
    return f"{how_words(speed)} {times(speed.value)}{f' ({limits})' if limits else ''}"


def how_words(speed: Speed) -> str:
    """How a speed is known."""
    if speed.how == "measured":
        return "measured"
    return f"predicted for {machine_name(speed.machine)}"


def worth_words(verdict: Verdict) -> str:
    """The speed's interval as a change, and the change that would be worth it."""
    speed = verdict.speed
    if speed is None:
        return ""
    counts = f"you count more than {percent(verdict.worth, 0 if verdict.worth >= 0.01 else 1)} as worth it"
    if speed.low is None or speed.high is None or too_wide(speed.value, speed.low, speed.high):
        return f"; {counts}"
    change = interval_text(speed.low, speed.high, lambda value: percent(value - 1))
    return f": {change} faster; {counts}"


def saved_words(verdict: Verdict) -> str:
    """Where the gain comes from, and what of it early exit adds to a smaller head alone."""
    parts = gain_text(verdict.gain)
    said = f"; saves of plain decoding: {parts}" if parts else ""
    credit = verdict.credit
    if verdict.without != "never" and credit is not None and credit.value is not None:
        said += f"; beside {CUT} it is {faster(credit.value)}"
    return said
