"""The verdicts at every quality floor, one row each."""

from __future__ import annotations

from offramp.report.basis import bases, basis_words, plain_seconds
from offramp.report.cells import decision_pill, stacked
from offramp.report.formats import counted, duration, listed, percent, timed_interval, times, whole_percent
from offramp.report.markup import Kind, element, kind_chip, policy_code, small, text
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.report.untransformed import reference_line
from offramp.report.verdict_words import how_words
from offramp.scoring.documents import lengths_of, lengths_text
from offramp.tuning.results import Verdict

ANSWER_TOKENS = 64


def floors_block(run: RunResult) -> str:
    """The verdicts at every floor, one row each."""
    if not any(workload.verdicts for workload in run.workloads):
        return element(
            "p", "No policy could be judged: there is no verdict at any quality floor.", class_="reason"
        )
    names = ["Keep", "Verdict", "Policy", "Kept", "Speed", "Beside it, replayed", "Documents"]
    kinds: list[Kind | None] = [None, None, None, "executed", None, "replayed", None]
    labels = [f"{name}, {kind}" if kind else name for name, kind in zip(names, kinds, strict=True)]
    head = "".join(
        element("th", text(name) + (f"<br>{kind_chip(kind)}" if kind else ""), scope="col")
        for name, kind in zip(names, kinds, strict=True)
    )
    bodies = "".join(floor_rows(run, workload, labels) for workload in run.workloads)
    note = (
        "Kept: the share of the tokens that the policy generates which are the full model's choice on the "
        "same prefix, certified on documents that it decoded freely. Speed is against the fastest plain "
        "decoder: measured where the policy was timed, else predicted from "
        f"{listed([basis_words(basis) for basis in bases(run)])}. What is replayed reads the full model's "
        "own keys and values: it proposes, and promises nothing. Agreement counts tokens, not answers: the "
        f"share of {ANSWER_TOKENS}-token answers left unchanged is what the floor to the power "
        f"{ANSWER_TOKENS} gives if misses were independent."
    )
    caption = element("caption", "Verdict by workload and quality floor, batch size 1")
    inner = element("table", caption + element("thead", element("tr", head)) + bodies, class_="cards floors")
    return (
        element("h2", "At the quality you would keep")
        + element(
            "div", inner, class_="scroll", tabindex=0, role="region", aria_label="Verdicts by quality floor"
        )
        + element("p", text(note), class_="note")
    )


def floor_rows(run: RunResult, workload: WorkloadResult, names: list[str]) -> str:
    """The rows of one workload under its own heading row."""
    heading = element(
        "tr", element("th", text(workload.name), scope="rowgroup", colspan=len(names)), class_="group"
    )
    rows = "".join(floor_row(run, workload, verdict, names) for verdict in workload.verdicts)
    if not workload.verdicts:
        rows = element("tr", element("td", "no policy could be judged on this workload", colspan=len(names)))
    return element("tbody", heading + rows)


def floor_row(run: RunResult, workload: WorkloadResult, verdict: Verdict, names: list[str]) -> str:
    """One verdict; each cell carries its column's name for the stacked layout of a phone."""
    unchanged = percent(verdict.floor**ANSWER_TOKENS, 0 if verdict.floor > 0.96 else 1)
    cells = [
        text(whole_percent(verdict.floor)) + small(f"{unchanged} of {ANSWER_TOKENS}-token answers unchanged"),
        decision_pill(verdict.decision) + why(verdict),
        policy_cell(verdict),
        kept_cell(verdict),
        speed_cell(run, workload, verdict),
        replayed_cell(verdict),
        documents_cell(workload, verdict),
    ]
    row = element("th", cells[0], scope="row", data_name=names[0])
    row += "".join(element("td", c, data_name=n) for c, n in zip(cells[1:], names[1:], strict=True))
    return element("tr", row)


def policy_cell(verdict: Verdict) -> str:
    """What to decode with, and what was tried where nothing is certified yet."""
    tried = verdict.tried
    if tried is not None:
        return policy_code(verdict.policy) + small("tried:") + policy_code(tried.policy) + _repair(tried.kv)
    return policy_code(verdict.policy) + ("" if verdict.kv is None else _repair(verdict.kv))


def _repair(kv: str) -> str:
    return small(f"K and V: {kv}")


def kept_cell(verdict: Verdict) -> str:
    """Executed agreement and its certificate: one status a floor."""
    certificate, tried = verdict.certificate, verdict.tried
    if tried is not None and tried.executed is not None:
        documents = counted(tried.documents, "document")
        return text(percent(tried.executed)) + small(f"{documents}, not certified yet")
    if verdict.policy == "never":
        return text("100 %") + small("plain decoding")
    if certificate is None or not certificate.executed:
        return text("not executed")
    value = text("not known") if verdict.kept is None else stacked(verdict.kept, percent)
    if verdict.certified:
        return value + small(f"certified ≥ {whole_percent(verdict.floor)}")
    return value + small("not certified")


def speed_cell(run: RunResult, workload: WorkloadResult, verdict: Verdict) -> str:
    """The speed with its interval, and how it is known."""
    speed = verdict.speed
    if speed is None:
        return text(times(1.0)) + small("plain decoding")
    limits = timed_interval(speed.value, speed.low, speed.high, times)
    seconds = plain_seconds(run, workload, verdict.basis)
    token = "" if seconds is None else small(f"{duration(seconds / speed.value)} a token")
    return text(times(speed.value)) + (small(limits) if limits else "") + small(how_words(speed)) + token


def replayed_cell(verdict: Verdict) -> str:
    """What the trace alone said of its own choice."""
    if verdict.agreement.value is None:
        return text("undefined") + small(verdict.agreement.undefined or "")
    said = f"{percent(verdict.agreement.value)} agreement"
    if verdict.net_speedup.value is not None:
        said += f", {times(verdict.net_speedup.value)} predicted"
    if verdict.skip_ratio.value is not None:
        said += f", {percent(verdict.skip_ratio.value)} of the layers skipped"
    cell = text(said)
    if verdict.replayed_policy not in (verdict.policy, "never"):
        cell += small("by another policy: ") + policy_code(verdict.replayed_policy)
    if verdict.reference_agreement is not None:
        cell += small(reference_line(verdict.reference_agreement))
    return cell


def documents_cell(workload: WorkloadResult, verdict: Verdict) -> str:
    """What a certificate rests on, and what it needs."""
    certificate = verdict.certificate
    needed = small(f"a certificate needs {verdict.documents_needed} or more")
    if certificate is None or not certificate.executed:
        halves = f"chosen on {verdict.fit_documents}, judged on {verdict.report_documents}"
        return text(halves) + small(lengths_text(lengths_of(workload.trace)).strip()) + needed
    decoded = certificate.stopped_after or 0
    length = f"{certificate.new_tokens} new tokens each" if certificate.new_tokens else ""
    return text(f"{decoded} decoded of {certificate.documents}") + small(length) + needed


def why(verdict: Verdict) -> str:
    """The reason behind a decision, one click away."""
    content = element("p", text(verdict.reason))
    if verdict.missing:
        content += element("p", text(f"Missing: {'; '.join(verdict.missing)}."))
    return element("details", element("summary", "why") + content, class_="why")
