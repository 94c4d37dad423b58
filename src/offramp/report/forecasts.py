"""A prediction beside its measurement in words: how far off, and which part was wrong."""

from __future__ import annotations

import re

from offramp.decoding.measurement.prediction import PredictionVerdict, when_it_counts
from offramp.decoding.measurement.results import Forecast, PartError
from offramp.report.formats import counted, duration, faster, listed, percent
from offramp.report.run_result import Decoded, DecodedPolicy

RIGHT = 0.02
"""A prediction of seconds per token within this share of the measured ones is called right."""

MOST_NAMED = 4
"""Of so many exits each is named in a short name."""

PART_NAMES = {
    "layers": "the layers",
    "probes": "the probes",
    "K,V repair": "the repair of keys and values",
    "heads": "the output head",
    "overhead": "the program around (overhead per token)",
}


def part_name(part: str) -> str:
    """A part of time in a sentence."""
    return PART_NAMES.get(part, part)


def short_name(policy: DecodedPolicy) -> str:
    """A decoded policy as the label of a row: what it is, and how keys and values are repaired."""
    return f"{rule_name(policy.policy)} · {policy.kv}"


def rule_name(policy: str) -> str:
    """A policy's text in a few words: its signal or kind, and the exits it checks."""
    kind = policy.partition(":")[0]
    values = dict(re.findall(r"(\w+)=([^,()\[\]]+)", policy))
    named = str(values.get("exit") or values.get("exits") or "")
    if not named:
        return kind
    exits = named.split("+")
    where = f"exit{'' if len(exits) == 1 else 's'} {named}"
    if len(exits) > MOST_NAMED:
        where = f"{len(exits)} exits"
    signal = values.get("signal")
    listed_tokens = ", short list" if kind == "shortlist" else ""
    return f"{kind} {where}" if signal is None else f"{signal.replace('_', ' ')}, {where}{listed_tokens}"


def change_words(decoded: Decoded, policy: DecodedPolicy) -> str:
    """The net speed that was measured, in words; why there is none."""
    timed = decoded.timed(policy)
    if timed.left_out is not None:
        return f"not timed: {timed.left_out}"
    return "not timed" if timed.ratio is None else faster(timed.ratio.value)


def error_sentence(forecast: Forecast) -> str:
    """How far the prediction was off, and because of what."""
    if forecast.predicted is None:
        return f"There was no prediction to hold against {duration(forecast.measured.value)} per token."
    error = forecast.predicted - forecast.measured.value
    share = abs(error) / forecast.measured.value
    measured = duration(forecast.measured.value)
    beside = f"{duration(forecast.predicted)} predicted, {measured} measured per token"
    if share <= RIGHT:
        return f"{beside}: right within {percent(share)}."
    way = "too high" if error > 0 else "too low"
    return f"{beside}: {percent(share)} {way}. {blame(forecast)}"


def blame(forecast: Forecast) -> str:
    """Which part of the prediction was wrong."""
    trace, worst = forecast.trace_error, forecast.worst_part
    cost = forecast.priced - forecast.measured.value
    if trace is not None and abs(trace) > abs(cost):
        predicted = "" if forecast.predicted_skip is None else percent(forecast.predicted_skip)
        skipped = percent(forecast.measured_skip)
        beside = f": {predicted} of the layers skipped on the trace, {skipped} in decoding"
        return (
            "Most of it comes from exits that were taken elsewhere than on the trace"
            f"{beside if predicted not in ('', skipped) else ''}."
        )
    if worst is None:
        return "It comes from the prices, given the exits that were taken; the parts were not timed apart."
    return f"Most of it comes from the prices: {part_sentence(worst)}."


def part_sentence(part: PartError) -> str:
    """One part priced and timed."""
    verb = "were" if part.part in ("layers", "probes") else "was"
    return (
        f"{part_name(part.part)} {verb} priced at {duration(part.priced)} per token and took "
        f"{duration(part.measured)}"
    )


def prediction_verdict(decoded: Decoded) -> PredictionVerdict | None:
    """Whether the predictions of this measurement count, None with fewer than three of them."""
    found = [p.forecast for p in decoded.policies if p.forecast is not None]
    found = [forecast for forecast in found if forecast.predicted is not None]
    if len(found) < 3:
        return None
    return when_it_counts(found, defect=not decoded.sound)


def counts_sentence(verdict: PredictionVerdict) -> str:
    """By the rule that was set down before the timing."""
    beside = (
        f"over {counted(verdict.policies, 'prediction')} the change against plain decoding was off by "
        f"{duration(verdict.median_error)} per token where it was {duration(verdict.median_change)} (medians)"
    )
    if verdict.counts:
        return f"These predictions count: {beside}."
    broken = listed([check.rule for check in verdict.rule if not check.holds])
    return f"These predictions do not count: {beside}. Out of bounds: {broken}."
