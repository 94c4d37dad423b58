"""The verdict at each floor in the words that page and terminal share: one row, one figure of each kind."""

from __future__ import annotations

from dataclasses import dataclass

from offramp.policies.short_names import short_name
from offramp.report.formats import counted, percent, timed_text, times, whole_percent
from offramp.report.run_result import RunResult
from offramp.report.timing import share_text
from offramp.report.verdict_words import how_words
from offramp.tuning.verdict import NEVER, Decision, Verdict

NOTHING = "–"


@dataclass(frozen=True)
class VerdictRow:
    """One text at one floor.

    policy: its text in the grammar, "never" where nothing is to be decoded with and nothing was tried. name:
    of it, with what is to be known of it. kept: share of its own tokens that are the full model's choice, and
    of how many documents. speed: over plain decoding. credit: over the fastest way without exits.
    """

    text: str
    floor: str
    decision: Decision
    policy: str
    name: str
    kept: str
    speed: str
    credit: str


def verdict_rows(run: RunResult) -> list[VerdictRow]:
    """Every verdict of a run, text by text, in the order of its floors."""
    return [_row(workload.name, one) for workload in run.workloads for one in workload.verdicts]


def policy_of(verdict: Verdict) -> tuple[str, str | None]:
    """The policy that a verdict's figures are of, and its K,V strategy: certified, or tried so far."""
    if verdict.policy == NEVER and verdict.tried is not None:
        return verdict.tried.policy, verdict.tried.kv
    return verdict.policy, verdict.kv


def _row(text: str, verdict: Verdict) -> VerdictRow:
    policy, _ = policy_of(verdict)
    name = short_name(policy)
    if verdict.policy == NEVER and policy != NEVER:
        name = f"tried: {name}"
    speed, credit = verdict.speed, verdict.credit
    exits = policy != NEVER
    return VerdictRow(
        text=text,
        floor=whole_percent(verdict.floor),
        decision=verdict.decision,
        policy=policy,
        name=name,
        kept=_kept(verdict) if exits else NOTHING,
        speed=NOTHING
        if speed is None or not exits
        else f"{timed_text(speed.value, speed.low, speed.high, times)}, {how_words(speed)}",
        credit=NOTHING
        if credit is None or credit.value is None or not exits
        else timed_text(credit.value, credit.low, credit.high, times),
    )


def _kept(verdict: Verdict) -> str:
    """What the row's policy kept as executed, of how many documents, and whether that is certified."""
    certificate = verdict.certificate
    if certificate is None or not certificate.executed:
        kept = verdict.agreement.value
        return NOTHING if kept is None else f"{percent(kept)}, replayed"
    tried = verdict.tried
    if verdict.policy == NEVER and tried is not None:
        if tried.executed is None:
            return "not executed"
        return f"{percent(tried.executed)}, {counted(tried.documents, 'document')}, not certified"
    if verdict.kept is None or verdict.kept.value is None:
        return "not known"
    said = f"{share_text(verdict.kept)}, {counted(certificate.stopped_after or 0, 'document')}"
    return f"{said}, {'certified' if verdict.certified else 'not certified'}"
