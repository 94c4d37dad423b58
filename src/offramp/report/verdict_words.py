"""One verdict in words: what is kept and at what speed, what early exit adds, what a transform costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from offramp.report.basis import machine_name
from offramp.report.formats import (
    estimate_text,
    faster,
    gain_text,
    interval_text,
    listed,
    percent,
    timed_text,
    times,
    too_wide,
    whole_percent,
)
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.scoring.estimate import Estimate, finite_json
from offramp.tuning.ranking import Credit, RankedPolicy, early_exit_credit
from offramp.tuning.verdict import Speed, Verdict

CUT = "plain decoding with its output head cut to the short list"


def speed_words(verdict: Verdict) -> str:
    """ "measured 1.081 × (1.061 to 1.099)" or "predicted ..."; what is missing where there is none."""
    speed = verdict.speed
    if speed is None:
        return "without a speed"
    return f"{how_words(speed)} {timed_text(speed.value, speed.low, speed.high, times)}"


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


def credits_of(league: Sequence[RankedPolicy]) -> list[Credit]:
    """The credit at each floor of a league, the strictest first; none where families were not ranked."""
    if all(entry.rank is None for entry in league):
        return []
    floors = sorted({entry.floor for entry in league}, reverse=True)
    return [early_exit_credit(league, floor) for floor in floors]


def credit_sentence(credit: Credit) -> str:
    """One floor in a sentence or two."""
    if credit.ratio is None or credit.speedup is None:
        return f"No early exit holds {whole_percent(credit.floor)} agreement on the documents that judge."
    if credit.without == "never":
        return (
            "Nothing that leaves no layer out is faster than plain decoding here, so all that the best early "
            f"exit gains is its own: {faster(credit.speedup)}."
        )
    return (
        f"Without any early exit, {CUT} is {faster(credit.without_speedup)}. The best early exit, "
        f"{faster(credit.speedup)} than plain decoding, is credited with what it adds to that: "
        f"{faster(credit.ratio)}."
    )


def credit_json(workload: str, credit: Credit) -> dict[str, Any]:
    """One floor of one workload as a JSON object."""
    value: dict[str, Any] = finite_json({"workload": workload, **asdict(credit), "ratio": credit.ratio})
    return value


def transform_sentence(run: RunResult) -> str | None:
    """What the transforms of the model cost before any early exit; None for a model without transforms."""
    costs = [cost for workload in run.workloads if (cost := transform_cost(workload)) is not None]
    if not costs:
        return None
    return (
        "What the transform itself costs: the full model, as transformed, says what the untransformed one "
        f"says on {listed(costs)}. Agreement is with the transformed full model wherever “untransformed” is "
        "not said."
    )


def transform_cost(workload: WorkloadResult) -> str | None:
    """Agreement of the transformed full model with the untransformed one on one workload."""
    kept = workload.card.reference_agreement
    if kept is None or kept.value is None:
        return None
    limits = interval_text(kept.low, kept.high, percent)
    why = f"95 % interval {limits}" if limits else f"no interval: {kept.no_interval}"
    return f"{percent(kept.value)} of the tokens of {workload.name} ({why})"


def reference_line(reference: Estimate | None) -> str:
    """Agreement with the untransformed model, to stand below an agreement; "" without transforms."""
    if reference is None:
        return ""
    if reference.value is None:
        return "untransformed: undefined"
    return f"untransformed: {estimate_text(reference, percent)}"
