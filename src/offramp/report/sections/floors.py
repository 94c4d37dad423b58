"""The verdicts at every quality floor, one row each."""

from __future__ import annotations

from markupsafe import Markup

from offramp.report.basis import bases, basis_words, plain_seconds
from offramp.report.formats import counted, duration, interval_text, listed, percent, times, whole_percent
from offramp.report.html import Column, fragment, pill, policy_code, stack, stacked, text
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.report.untransformed import reference_line
from offramp.report.verdict_words import how_words
from offramp.scoring.documents import lengths_of, lengths_text
from offramp.tuning.results import Verdict

ANSWER_TOKENS = 64


COLUMNS = (
    Column("Keep"),
    Column("Verdict"),
    Column("Policy"),
    Column("Kept", "executed"),
    Column("Speed"),
    Column("Beside it, replayed", "replayed"),
    Column("Documents"),
)


def floors_block(run: RunResult) -> Markup:
    """The verdicts at every floor, one row each."""
    judged = any(workload.verdicts for workload in run.workloads)
    basis = listed([basis_words(one) for one in bases(run)])
    rows = [(w.name, [floor_row(run, w, verdict) for verdict in w.verdicts]) for w in run.workloads]
    return fragment("run", "floors", COLUMNS, rows if judged else [], basis, ANSWER_TOKENS)


def floor_row(run: RunResult, workload: WorkloadResult, verdict: Verdict) -> list[Markup]:
    """One verdict."""
    unchanged = percent(verdict.floor**ANSWER_TOKENS, 0 if verdict.floor > 0.96 else 1)
    left = f"{unchanged} of {ANSWER_TOKENS}-token answers unchanged"
    return [
        stack(whole_percent(verdict.floor), left),
        pill(verdict.decision) + fragment("run", "why", verdict.reason, verdict.missing),
        policy_cell(verdict),
        kept_cell(verdict),
        speed_cell(run, workload, verdict),
        replayed_cell(verdict),
        documents_cell(workload, verdict),
    ]


def policy_cell(verdict: Verdict) -> Markup:
    """What to decode with, and what was tried where nothing is certified yet."""
    tried = verdict.tried
    if tried is not None:
        found = stack(policy_code(verdict.policy), "tried:") + policy_code(tried.policy)
        return stack(found, f"K and V: {tried.kv}")
    return stack(policy_code(verdict.policy), "" if verdict.kv is None else f"K and V: {verdict.kv}")


def kept_cell(verdict: Verdict) -> Markup:
    """Executed agreement and its certificate: one status a floor."""
    certificate, tried = verdict.certificate, verdict.tried
    if tried is not None and tried.executed is not None:
        documents = counted(tried.documents, "document")
        return stack(percent(tried.executed), f"{documents}, not certified yet")
    if verdict.policy == "never":
        return stack("100 %", "plain decoding")
    if certificate is None or not certificate.executed:
        return text("not executed")
    value = text("not known") if verdict.kept is None else stacked(verdict.kept, percent)
    if verdict.certified:
        return stack(value, f"certified ≥ {whole_percent(verdict.floor)}")
    return stack(value, "not certified")


def speed_cell(run: RunResult, workload: WorkloadResult, verdict: Verdict) -> Markup:
    """The speed with its interval, and how it is known."""
    speed = verdict.speed
    if speed is None:
        return stack(times(1.0), "plain decoding")
    limits = interval_text(speed.low, speed.high, times)
    seconds = plain_seconds(run, workload, verdict.basis)
    token = "" if seconds is None else f"{duration(seconds / speed.value)} a token"
    return stack(times(speed.value), limits, how_words(speed), token)


def replayed_cell(verdict: Verdict) -> Markup:
    """What the trace alone said of its own choice."""
    if verdict.agreement.value is None:
        return stack("undefined", verdict.agreement.undefined or "")
    said = f"{percent(verdict.agreement.value)} agreement"
    if verdict.net_speedup.value is not None:
        said += f", {times(verdict.net_speedup.value)} predicted"
    if verdict.skip_ratio.value is not None:
        said += f", {percent(verdict.skip_ratio.value)} of the layers skipped"
    cell = text(said)
    if verdict.replayed_policy not in (verdict.policy, "never"):
        cell = stack(cell, "by another policy: ") + policy_code(verdict.replayed_policy)
    if verdict.reference_agreement is not None:
        cell = stack(cell, reference_line(verdict.reference_agreement))
    return cell


def documents_cell(workload: WorkloadResult, verdict: Verdict) -> Markup:
    """What a certificate rests on, and what it needs."""
    certificate = verdict.certificate
    needed = f"a certificate needs {verdict.documents_needed} or more"
    if certificate is None or not certificate.executed:
        halves = f"chosen on {verdict.fit_documents}, judged on {verdict.report_documents}"
        return stack(halves, lengths_text(lengths_of(workload.trace)).strip(), needed)
    decoded = certificate.stopped_after or 0
    length = f"{certificate.new_tokens} new tokens each" if certificate.new_tokens else ""
    return stack(f"{decoded} decoded of {certificate.documents}", length, needed)
