"""What trained exits save on a text at a floor, and after how many tokens their training is paid back."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.report.run_result import Decoded, RunResult
from offramp.studies.comparison.results import saved_without, share_saved
from offramp.studies.work.training_cost import Training
from offramp.tuning.break_even import tokens_to_pay_back
from offramp.tuning.verdict import Verdict


@dataclass(frozen=True)
class Bought:
    """What trained exits give on one text at one floor.

    saved: share of the fastest plain decoder's time that is saved, with its interval; None where nothing
    faster is certified. open: whether a candidate may yet be. credit: measured speed over the best decoder
    without exits, None where that was not timed beside it. tokens: generated tokens after which training is
    paid back over that decoder, None if never, or if that is not known.
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
    credit: float | None = None

    @property
    def never(self) -> bool:
        """Whether training is never paid back; else, without tokens, nobody knows."""
        return self.tokens is None and (self.saved is None or self.credit is not None)


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
    credit, tokens = _credit(decoded, verdict), None
    if seconds and credit is not None:
        tokens = tokens_to_pay_back(training.seconds, seconds, saved, saved_without(saved, credit))
    return Bought(text, verdict.floor, verdict.policy, speed.how, saved, low, high, tokens, credit=credit)


def _credit(decoded: Decoded | None, verdict: Verdict) -> float | None:
    """What the stopwatch credits the verdict's policy with, where all that needs no exits took turns."""
    if decoded is None or decoded.bench.untimed_rivals:
        return None
    for policy in decoded.policies:
        if (policy.policy, policy.kv) == (verdict.policy, verdict.kv):
            found = decoded.bench.credit(policy.contender, verdict.floor)
            return None if found is None else found.value
    return None
