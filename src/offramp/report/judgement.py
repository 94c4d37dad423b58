"""A verdict after its policy was decoded: what was measured beats what was predicted.

The rule, for the policy that a verdict names and its net speedup over the fastest plain decoder:

- a measurement with a defect, or of another policy, changes nothing; nor a verdict for another machine;
- "does not pay" as soon as the measured upper limit lies below 1 + worth, whatever was predicted;
- "pays" only if prediction and measurement both say so: the measured lower limit lies above 1 + worth, and
  the agreement of the generated text is not wholly below the floor;
- otherwise "too close to call", unless the prediction already was "does not pay" and the measurement leaves
  it open.

A run decodes a few prompts only, so a measurement can take a promise back but cannot make one by itself.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from offramp.decoding.bench.results import FreeRunning, Interval
from offramp.report.basis import LOCAL
from offramp.report.decoded import Decoded, DecodedPolicy
from offramp.report.formats import faster, interval_text, percent, whole_percent
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.tuning.pricing import BYTES
from offramp.tuning.results import Decision, Verdict
from offramp.tuning.verdict import WORTH

HERE = (LOCAL, BYTES)
"""What a verdict's speed rests on if this machine's stopwatch can confirm it; another machine's it cannot."""

CHARGED_KV = "propagate"
"""The strategy that replay charges a verdict's policy for."""


@dataclass(frozen=True)
class Judgement:
    """A verdict with what decoding said of it.

    decision: after the measurement. measured: net speedup of this very policy by a sound measurement, None
    without one. why: what the measurement changed, in a clause; None if nothing.
    """

    name: str
    verdict: Verdict
    decision: Decision
    measured: Interval | None = None
    why: str | None = None

    @property
    def predicted(self) -> float | None:
        """The predicted net speedup."""
        return self.verdict.net_speedup.value

    @property
    def speed(self) -> float | None:
        """The net speedup to quote: measured if it was, else predicted."""
        return self.predicted if self.measured is None else self.measured.value

    @property
    def interval(self) -> str:
        """The interval of the speed to quote as a change, "" if there is none."""
        limits = self.verdict.net_speedup if self.measured is None else self.measured
        return interval_text(limits.low, limits.high, lambda value: percent(value - 1))


def judge_measured(run: RunResult, workload: WorkloadResult, verdict: Verdict) -> Judgement:
    """The verdict by the rule of this file."""
    decoded = run.decoded(workload.name)
    plain = Judgement(workload.name, verdict, verdict.decision)
    if decoded is None or not decoded.sound or verdict.basis not in HERE:
        return plain
    if verdict.policy == "never":
        return _overlooked(plain, decoded)
    policy = decoded_policy(decoded, verdict)
    speedup = None if policy is None else decoded.speedup(policy)
    if policy is None or speedup is None:
        return plain
    decision, why = _combined(verdict, speedup, policy.free_running)
    return replace(plain, decision=decision, measured=speedup, why=why)


def decoded_policy(decoded: Decoded, verdict: Verdict) -> DecodedPolicy | None:
    """The decoded policy that a verdict names, as the verdict charges it."""
    return next(
        (p for p in decoded.policies if p.policy == verdict.policy and p.kv == CHARGED_KV),
        None,
    )


def measured_seconds(run: RunResult, workload: WorkloadResult, verdict: Verdict) -> Interval | None:
    """Measured seconds per token of a verdict's policy; None if it was not decoded."""
    decoded = run.decoded(workload.name) if verdict.basis in HERE else None
    policy = None if decoded is None else decoded_policy(decoded, verdict)
    return None if decoded is None or policy is None else decoded.timed(policy).seconds_per_token


def _combined(
    verdict: Verdict, speedup: Interval, answers: FreeRunning | None
) -> tuple[Decision, str | None]:
    words = f"it was measured to decode {measured_words(speedup)}"
    if speedup.high is not None and speedup.high < 1 + WORTH:
        contradicts = verdict.decision != "does not pay"
        return "does not pay", words if contradicts else None
    if speedup.low is None or speedup.low <= 1 + WORTH:
        if verdict.decision == "does not pay":
            return "does not pay", None
        return "too close to call", f"{words}, which leaves it open"
    kept = None if answers is None else answers.agreement
    if kept is not None and kept.high is not None and kept.high < verdict.floor:
        below = f"{percent(kept.value)} of the generated tokens are the full model's"
        return "too close to call", f"{words}, but only {below}"
    if verdict.decision == "pays":
        return "pays", None
    predicted = verdict.net_speedup.value
    said = "undefined" if predicted is None else faster(predicted)
    return "too close to call", f"{words}, but the prediction, on more documents, is {said}"


def _overlooked(plain: Judgement, decoded: Decoded) -> Judgement:
    """The choice was never to exit, but a policy that was decoded is fast enough and agrees enough."""
    policy = decoded.chosen
    speedup = None if policy is None else decoded.speedup(policy)
    if policy is None or speedup is None or speedup.low is None or speedup.low <= 1 + WORTH:
        return plain
    kept = None if policy.free_running is None else policy.free_running.agreement
    if kept is None or kept.value < plain.verdict.floor:
        return plain
    why = (
        f"replay chose never to exit, but {policy.policy} was measured to decode {measured_words(speedup)} "
        f"and kept {whole_percent(plain.verdict.floor)} agreement"
    )
    return replace(plain, decision="too close to call", why=why)


def measured_words(speedup: Interval) -> str:
    """A measured net speedup in words, with its interval."""
    interval = interval_text(speedup.low, speedup.high, lambda value: percent(value - 1))
    return f"{faster(speedup.value)}{f' ({interval})' if interval else ''}"
