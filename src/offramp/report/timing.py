"""Timings in words: what they answer, how far off a prediction was and why, names of policies."""

from __future__ import annotations

from collections.abc import Mapping

from offramp.report.formats import (
    NumberFormat,
    Timed,
    counted,
    decimal,
    duration,
    estimate_text,
    limits_of,
    listed,
    moment,
    percent,
    thousandths,
    timed_text,
    times,
    whole_percent,
)
from offramp.report.table import NOTHING, Cell
from offramp.scoring.estimate import Estimate
from offramp.timing.combined import CombineResult
from offramp.timing.prediction import PredictionVerdict
from offramp.timing.results import (
    Answer,
    BenchResult,
    Contender,
    FloorCheck,
    Forecast,
    PartError,
    Stopped,
)
from offramp.tuning.verdict_words import TOO_WIDE

ENDED: Mapping[Stopped, str] = {
    "answered": "every question was answered",
    "seconds": "the seconds were spent",
    "rounds": "the rounds were over",
}

DECISIONS: Mapping[Answer, str] = {
    "faster": "pays",
    "slower": "does-not-pay",
    "defect": "does-not-pay",
    "equivalent": "open",
    "unresolved": "open",
}
"""The colour that an answer has on a page, as a class of its decisions."""


def contender_answer(contender: Contender, worth: float) -> str:
    """What a timing says, with what it stands on; why there is nothing.

    "equivalent within ± 5 %", "unresolved at ± 3.4 %", "faster".
    """
    resolution = contender.resolution
    if contender.ratio is None:
        return f"not timed: {contender.left_out or 'no reason recorded'}"
    if contender.answer == "equivalent":
        return f"equivalent within ± {whole_percent(worth)}"
    if contender.answer != "unresolved":
        return contender.answer
    if resolution is None:
        return "unresolved: one prompt has no interval" if contender.clusters else "in the pilot only"
    if resolution >= TOO_WIDE - 1.0:
        return "unresolved: too few prompts"
    return f"unresolved at ± {percent(resolution)}"


def with_interval(found: Timed | None, number: NumberFormat, *below: str) -> Cell:
    """A figure of a timing with its interval below it; below: further lines."""
    if found is None or found.value is None:
        return Cell(NOTHING)
    value = Estimate(found.value, found.low, found.high)
    return Cell(number(found.value), below=(limits_of(found, number), *below), value=value)


def circumstances_text(result: BenchResult | CombineResult) -> str:
    """What was run, when, and how equal the plain decoder came out to itself."""
    return (
        f"Measured {moment(result.date)}: {counted(result.prompts, 'prompt')}, {result.new_tokens} "
        f"new tokens, {counted(result.rounds, 'round')}, in turns of a few tokens; "
        f"{stopped_text(result.stopped, result.seconds_spent)}. The plain decoder against itself came out at "
        f"{a_a_text(result.a_a)}."
    )


def stopped_text(stopped: Stopped, seconds: float) -> str:
    """Why nothing more was timed: "every question was answered after 61 s"."""
    return f"{ENDED[stopped]} after {decimal(seconds, 0)} s"


def a_a_text(a_a: Estimate[float]) -> str:
    """How equal the plain decoder came out to itself."""
    limits = limits_of(a_a, thousandths)
    return f"{decimal(a_a.value, 3)}{f' ({limits} at 99 %)' if limits else ''}"


def counted_text(contender: Contender, plain: Contender) -> str | None:
    """What a token runs beside what a plain one does, counted; None where nobody counted."""
    own, full = contender.counted, plain.counted
    if own is None or full is None:
        return None
    probes = f" and {decimal(own.probes, 1)} probes" if own.probes else ""
    return (
        f"{decimal(own.layers, 1)} of {decimal(full.layers, 0)} layers, {decimal(own.heads, 1)} heads"
        f"{probes}; {percent(own.flops / full.flops, 0)} of the FLOPs and "
        f"{percent(own.bytes / full.bytes, 0)} of the bytes of plain decoding"
    )


def floor_text(floor: FloorCheck, prompts: int) -> str:
    """What a policy kept of the floor that it was tuned for; a floor that is missed is named first."""
    promise = f"{'certified' if floor.certified else 'not certified'} floor {floor.floor}"
    if floor.kept is None:
        return f"the policy's {promise} was not judged here"
    share = estimate_text(floor.kept, percent)
    of = f"of the generated tokens of {counted(prompts, 'prompt')}"
    kept = f"{share} {of} are the full model's choice"
    if floor.missed:
        return f"BELOW ITS FLOOR: {kept}, under the policy's {promise}"
    return f"{kept}: the policy's {promise} is kept"


def defect_lines(result_defects: tuple[str, ...]) -> list[str]:
    """Every defect as a line of its own."""
    return [f"DEFECT: {sentence}" for sentence in result_defects]


def answer_sentence(contender: Contender, plain: str, worth: float) -> str:
    """The answer with its ratio: "X is faster: 1.120 × (1.090 to 1.150 ×) the speed of generate()"."""
    name, answer = contender.name, contender_answer(contender, worth)
    if contender.ratio is None:
        return f"{name} was {answer}"
    return f"{name} is {answer}: {timed_text(contender.ratio, times)} the speed of {plain}"


RIGHT = 0.02
"""A prediction of seconds per token within this share of the measured ones is called right."""

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
