"""The verdicts at every quality floor, one row each."""

from __future__ import annotations

from offramp.decoding.bench.results import Interval
from offramp.report.basis import bases, basis_words, predicted_seconds
from offramp.report.cells import decision_pill, stacked
from offramp.report.formats import NumberFormat, duration, listed, percent, times, whole_percent
from offramp.report.judgement import Judgement, judge_measured, measured_seconds
from offramp.report.markup import Kind, element, kind_chip, policy_code, small, text
from offramp.report.run_result import RunResult, WorkloadResult
from offramp.report.untransformed import reference_line
from offramp.scoring.documents import lengths_of, lengths_text
from offramp.tuning.results import Verdict

ANSWER_TOKENS = 64


def floors_block(run: RunResult) -> str:
    """The verdicts at every floor, one row each."""
    if not any(workload.verdicts for workload in run.workloads):
        return element(
            "p", "No policy could be judged: there is no verdict at any quality floor.", class_="reason"
        )
    names = [
        "Keep",
        "Verdict",
        "Best policy",
        "Speed",
        "Agreement",
        "Layers skipped",
        "Time per token",
        "Documents",
    ]
    kinds: list[Kind | None] = [None, None, None, "predicted", "replayed", "replayed", "predicted", None]
    labels = [f"{name}, {kind}" if kind else name for name, kind in zip(names, kinds, strict=True)]
    head = "".join(
        element("th", text(name) + (f"<br>{kind_chip(kind)}" if kind else ""), scope="col")
        for name, kind in zip(names, kinds, strict=True)
    )
    bodies = "".join(floor_rows(run, workload, labels) for workload in run.workloads)
    note = (
        "The threshold is chosen on one half of the documents and judged on the other, which it never "
        "saw. Speed is against plain decoding, predicted from "
        f"{listed([basis_words(basis) for basis in bases(run)])}{beats(run)}. Agreement counts tokens, not "
        f"answers: the share of {ANSWER_TOKENS}-token answers left unchanged is what the floor to the power "
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


def beats(run: RunResult) -> str:
    """The rule for a policy that was decoded too; nothing where none was."""
    if not any(decoded.valid for decoded in run.decoding):
        return ""
    return "; where the policy was decoded and the measurement is valid, what was measured decides"


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
    seconds = predicted_seconds(run, workload, verdict)
    judgement = judge_measured(run, workload, verdict)
    measured = measured_seconds(run, workload, verdict)
    unchanged = percent(verdict.floor**ANSWER_TOKENS, 0 if verdict.floor > 0.96 else 1)
    agreement = stacked(verdict.agreement, percent)
    if verdict.reference_agreement is not None:
        agreement += small(reference_line(verdict.reference_agreement))
    if not verdict.floor_held and verdict.policy != "never":
        agreement += element("small", "below the floor", class_="warning")
    documents = f"chosen on {verdict.fit_documents}, judged on {verdict.report_documents}"
    length = lengths_text(lengths_of(workload.trace)).strip()
    needed = f"{length and length + ' each; '}a certificate needs {verdict.documents_needed} or more"
    cells = [
        text(whole_percent(verdict.floor)) + small(f"{unchanged} of {ANSWER_TOKENS}-token answers unchanged"),
        decision_pill(judgement.decision) + why(judgement),
        policy_code(verdict.policy),
        stacked(verdict.net_speedup, times) + measured_line(judgement.measured, times),
        agreement,
        stacked(verdict.skip_ratio, percent),
        text("unknown" if seconds is None else duration(seconds)) + measured_line(measured, duration),
        text(documents) + small(needed),
    ]
    row = element("th", cells[0], scope="row", data_name=names[0])
    row += "".join(element("td", c, data_name=n) for c, n in zip(cells[1:], names[1:], strict=True))
    return element("tr", row)


def measured_line(measured: Interval | None, number: NumberFormat) -> str:
    """What the stopwatch said, below what was predicted; nothing if it was not asked."""
    return "" if measured is None else small(f"measured {number(measured.value)}")


def why(judgement: Judgement) -> str:
    """The reason behind a decision, one click away."""
    content = element("p", text(judgement.verdict.reason))
    if judgement.why is not None:
        predicted = f"Predicted: {judgement.verdict.decision}. Measured beats predicted: {judgement.why}."
        content += element("p", text(predicted))
    return element("details", element("summary", "why") + content, class_="why")
