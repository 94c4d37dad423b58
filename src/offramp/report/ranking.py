"""What was decoded for real on one text, ranked: how fast, and what it keeps; lossless ways included."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.decoding.measurement.results import Contender, Interval
from offramp.report.formats import counted, percent, value_text, whole_percent
from offramp.report.run_result import Decoded, DecodedPolicy, WorkloadResult
from offramp.tuning.verdict import Verdict

NAMES = {"generate(prompt_lookup_num_tokens)": "prompt lookup"}
"""How users know what the measurement calls otherwise."""

PLAIN, PEER = "plain", "peer"


@dataclass(frozen=True)
class Ranked:
    """One way to decode a text. name: of a way without a policy.

    policy: that it decodes with, None without one. kept: share of its tokens that are the full model's
    choice, None if it is not known; documents: that it was certified on, None where it was judged on the
    prompts of the timing alone. misses: whether that is surely below the floor that it was chosen for, or is
    not shown to reach it.
    """

    name: str
    timed: Contender
    policy: DecodedPolicy | None
    kept: Interval | None
    documents: int | None
    misses: bool

    @property
    def lossless(self) -> bool:
        """Whether its output is the full model's."""
        return self.policy is None


def ranked(decoded: Decoded, workload: WorkloadResult | None) -> list[Ranked]:
    """Every way to decode that was timed, the fastest first; those that do not keep their floor last."""
    policies = {policy.contender: policy for policy in decoded.policies}
    verdicts = () if workload is None else workload.verdicts
    found = [
        _ranked(one, policies.get(one.name), verdicts)
        for one in decoded.bench.contenders
        if one.ratio is not None and (one.name in policies or one.role in (PLAIN, PEER))
    ]
    return sorted(found, key=lambda one: (one.misses, -_speed(one)))


def _speed(one: Ranked) -> float:
    return 0.0 if one.timed.ratio is None else one.timed.ratio.value


def _ranked(timed: Contender, policy: DecodedPolicy | None, verdicts: tuple[Verdict, ...]) -> Ranked:
    name = NAMES.get(timed.name, timed.name)
    if policy is None:
        return Ranked(name, timed, None, timed.executed_agreement, None, misses=False)
    kept = None if policy.free_running is None else policy.free_running.agreement
    documents, certified = None, False
    for verdict in verdicts:
        if (verdict.policy, verdict.kv) == (policy.policy, policy.kv) and verdict.certified:
            certificate, executed = verdict.certificate, verdict.kept
            if certificate is not None and executed is not None and executed.value is not None:
                kept = Interval(executed.value, executed.low, executed.high)
                documents, certified = certificate.stopped_after or certificate.documents, True
            break
    floor = policy.floor
    # Burden of proof: what is not certified must reach the floor with the lower end of its interval.
    reaches = kept is not None and (kept.value if kept.low is None else kept.low) >= (floor or 0.0)
    return Ranked(
        name, timed, policy, kept, documents, misses=floor is not None and not (certified or reaches)
    )


def kept_text(one: Ranked) -> str:
    """What it keeps, with its interval."""
    if one.kept is None:
        return "not judged"
    return value_text(one.kept.value, one.kept.low, one.kept.high, percent)


def basis_text(one: Ranked) -> str:
    """What that rests on, and whether it is enough for the floor."""
    if one.lossless:
        return "lossless" if one.kept is not None and one.kept.value == 1.0 else ""
    assert one.policy is not None
    floor = "" if one.policy.floor is None else whole_percent(one.policy.floor)
    if one.documents is not None:
        return f"certified ≥ {floor}, {counted(one.documents, 'document')}"
    return f"not shown to keep {floor}" if one.misses else ""


def sample_text(decoded: Decoded) -> str:
    """How much was decoded for it: "6 prompts of 9 new tokens"."""
    bench = decoded.bench
    return f"{counted(bench.prompts, 'prompt')} of {counted(bench.new_tokens, 'new token')}"
