"""What trained exits save on a text at a floor, and after how many tokens their training is paid back."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.report.run_result import RunResult
from offramp.studies.comparison.results import share_saved
from offramp.studies.work.training_cost import Training
from offramp.tuning.break_even import tokens_to_pay_back
from offramp.tuning.verdict import Verdict


@dataclass(frozen=True)
class Bought:
    """What trained exits give on one text at one floor.

    saved: share of the fastest plain decoder's time that is saved, with its interval; None where nothing
    faster is certified. open: whether a candidate may yet be. tokens: generated tokens after which training
    is paid back, None if never, or if plain decoding was not timed.
    """

    text: str
    floor: float
    policy: str
    how: str
    saved: float | None
    low: float | None
    high: float | None
    tokens: float | None
    open: bool = False


def bought(run: RunResult, training: Training) -> list[Bought]:
    """Every text and floor, from the verdicts that the page is about."""
    return [
        _bought(run, training, workload.name, verdict)
        for workload in run.workloads
        for verdict in workload.verdicts
    ]


def _bought(run: RunResult, training: Training, text: str, verdict: Verdict) -> Bought:
    speed = verdict.speed if verdict.certified and verdict.policy != "never" else None
    if speed is None:
        return Bought(text, verdict.floor, "never", "", None, None, None, None, verdict.tried is not None)
    # The slower limit of the speed is the lower one of what is saved.
    saved = share_saved(speed.value)
    low, high = (None if limit is None else share_saved(limit) for limit in (speed.low, speed.high))
    decoded = run.decoded(text)
    plain = run.plain_seconds_per_token
    seconds = (decoded and decoded.plain_seconds) or (plain and plain.value)
    tokens = tokens_to_pay_back(training.seconds, seconds, saved) if seconds else None
    return Bought(text, verdict.floor, verdict.policy, speed.how, saved, low, high, tokens)
