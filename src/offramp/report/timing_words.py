"""What a timing answers, in words: answers with their resolution, why it stopped, what was counted beside."""

from __future__ import annotations

from collections.abc import Mapping

from offramp.decoding.measurement.results import Answer, BenchResult, Contender, FloorCheck, Interval, Stopped
from offramp.report.formats import (
    counted,
    decimal,
    percent,
    timed_interval,
    timed_text,
    times,
    value_text,
    whole_percent,
)
from offramp.tuning.verdict import TOO_WIDE

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


def answer_name(answer: Answer, resolution: float | None, worth: float) -> str:
    """An answer with what it stands on: "equivalent within ± 5 %", "unresolved at ± 3.4 %", "faster"."""
    if answer == "equivalent":
        return f"equivalent within ± {whole_percent(worth)}"
    if answer == "unresolved":
        if resolution is not None and resolution >= TOO_WIDE - 1.0:
            return "unresolved: too few prompts"
        return "unresolved" if resolution is None else f"unresolved at ± {percent(resolution)}"
    return answer


def contender_answer(contender: Contender, worth: float) -> str:
    """`answer_name` of a contender; why there is none."""
    if contender.ratio is None:
        return f"not timed: {contender.left_out or 'no reason recorded'}"
    if contender.answer == "unresolved" and contender.resolution is None:
        return "unresolved: one prompt has no interval" if contender.clusters else "in the pilot only"
    return answer_name(contender.answer, contender.resolution, worth)


def answer_sentence(contender: Contender, plain: str, worth: float) -> str:
    """The answer with its ratio: "faster: 1.120 × the speed of generate() (1.090 to 1.150 ×)"."""
    if contender.ratio is None:
        return f"{contender.name} was {contender_answer(contender, worth)}"
    return f"{contender_answer(contender, worth)}: {ratio_text(contender.ratio)} the speed of {plain}"


def ratio_text(ratio: Interval) -> str:
    """A ratio with its interval: "1.120 × (1.090 to 1.150 ×)"."""
    return timed_text(ratio.value, ratio.low, ratio.high, times)


def stopped_text(stopped: Stopped, seconds: float) -> str:
    """Why nothing more was timed: "every question was answered after 61 s"."""
    return f"{ENDED[stopped]} after {decimal(seconds, 0)} s"


def twins_text(a_a: Interval) -> str:
    """How equal the plain decoder came out to itself."""
    limits = timed_interval(a_a.value, a_a.low, a_a.high, lambda value: decimal(value, 3))
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
    share = value_text(floor.kept.value, floor.kept.low, floor.kept.high, percent)
    of = f"of the generated tokens of {counted(prompts, 'prompt')}"
    kept = f"{share} {of} are the full model's choice"
    if floor.missed:
        return f"BELOW ITS FLOOR: {kept}, under the policy's {promise}"
    return f"{kept}: the policy's {promise} is kept"


def gain_text(gain: Mapping[str, float]) -> str:
    """Where a gain comes from: "layers 4.1 %, head 1.2 %, probes -0.5 %", of the plain decoder's time."""
    return ", ".join(f"{part} {percent(share)}" for part, share in gain.items())


def defect_lines(result_defects: tuple[str, ...]) -> list[str]:
    """Every defect as a line of its own."""
    return [f"DEFECT: {sentence}" for sentence in result_defects]


def headline_of(result: BenchResult) -> str:
    """The answer of a measurement in one sentence."""
    return f"{result.main.name} is {answer_sentence(result.main, result.plain, result.worth)}"
