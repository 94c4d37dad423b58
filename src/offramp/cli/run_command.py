"""`offramp run`: from a model to a measured, scored, readable report."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from offramp.cli.console import Output
from offramp.runs.request import Run

if TYPE_CHECKING:
    from offramp.report.run_findings import Findings

SHORT = (
    "workload",
    "floor",
    "decision",
    "policy",
    "kv",
    "certified",
    "executed_agreement",
    "speed",
    "missing",
)
"""Of a verdict, in what `--json` prints; summary.json has everything."""


def run(asked: Run, out: Output) -> None:
    """Carry a run out, and say what it found."""
    workloads = asked.texts()  # before torch is there

    from offramp.report.page import print_summary, print_verdict_so_far
    from offramp.runs.stages import carry_out

    findings = carry_out(asked, workloads, lambda so_far: print_verdict_so_far(so_far, out.console))
    print_summary(findings.result, out.console, findings.report)
    out.finish(_short(findings))


def _short(findings: Findings) -> dict[str, Any]:
    """The answer of a run for machines: headline, verdicts, what to do next, and where the rest lies."""
    from offramp.kit.typed import to_json
    from offramp.report.next_step import next_step
    from offramp.report.summary import OfText
    from offramp.runs.folder import SUMMARY_FILE

    verdicts = [to_json(OfText(finding.workload, finding.detail)) for finding in findings]
    return {
        "headline": findings.headline,
        "decision": findings.decision,
        "verdicts": [{name: verdict[name] for name in SHORT} for verdict in verdicts],
        "next": None if (step := next_step(findings.result)) is None else asdict(step),
        "summary": str(findings.folder / SUMMARY_FILE),
        "report": str(findings.report),
    }
