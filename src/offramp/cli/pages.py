"""`offramp run`, `compare` and `report`: from models to pages."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from offramp.cli.command import Output
from offramp.kit.request import Options, Request, Writes, argument, flags
from offramp.runs.request import Run
from offramp.tracing.progress import stage

if TYPE_CHECKING:
    from offramp.report.run_findings import Findings


SHORT = (
    "workload",
    "floor",
    "decision",
    "policy",
    "kv",
    "tried",
    "certified",
    "executed_agreement",
    "speed",
    "missing",
    "request",
    "decoding",
    "text_quality",
)
"""Of a verdict, in what `--json` prints; summary.json has everything. Where nothing is certified, `speed` is
that of what was `tried`."""


def run(asked: Run, out: Output) -> None:
    """Carry a run out, and say what it found."""
    workloads = asked.texts()  # before torch is there

    from offramp.report.page import print_summary, print_verdict_so_far
    from offramp.runs.stages import carry_out

    findings = carry_out(asked, workloads, lambda so_far: print_verdict_so_far(so_far, out.console))
    print_summary(findings.result, out.console, findings.report)
    out.finish(short_json(findings))


def short_json(findings: Findings) -> dict[str, Any]:
    """The answer of a run for machines: headline, verdicts, what to do next, and where the rest lies."""
    from offramp.kit.typed import to_json
    from offramp.report.run_findings import next_step
    from offramp.report.summary import OfText
    from offramp.runs.folder import SUMMARY_FILE

    verdicts = [to_json(OfText(finding.workload, finding.detail)) for finding in findings]
    return {
        "headline": findings.headline,
        "decision": findings.decision,
        "verdicts": [{name: verdict[name] for name in SHORT if name in verdict} for verdict in verdicts],
        "next": None if (step := next_step(findings.result)) is None else asdict(step),
        "summary": str(findings.folder / SUMMARY_FILE),
        "report": str(findings.report),
        "other_texts": list(findings.result.other_texts),
        "all_texts": findings.result.all_texts,
    }


DEFAULT_FOLDER = Path("runs/comparison")


@dataclass(frozen=True, kw_only=True)
class Mixed(Options):
    """Whether what was measured differently stands in one table."""

    mixed: bool = False
    """Compare nevertheless what was measured on other tokens or texts, or in other ways, and say so."""


@dataclass(frozen=True, kw_only=True)
class CompareCommand(Mixed, Request):
    """Compare models, strategies and texts: leaderboard, strategies, and scores beside what is saved."""

    folders: Annotated[tuple[Path, ...], argument, flags(metavar="DIR")]
    """Folders of offramp study run and offramp run."""
    output: Annotated[Path, Writes(CompareCommand.require_own)] = DEFAULT_FOLDER
    """Folder for the page, the tables and the citation."""

    def require_own(self, output: Path) -> None:
        """Refuse a folder of something else."""
        from offramp.report.pages import COMPARISON_FOLDER

        COMPARISON_FOLDER.require(output, overwrite=True)


def compare(asked: CompareCommand, out: Output) -> None:
    """Write the page and the tables of a comparison, and show the main ones."""
    from offramp.report import REPORT_FILE
    from offramp.report.comparison_page import comparison_terminal
    from offramp.report.pages import CITATION_FILE, COMPARISON_FOLDER, TABLES, write_comparison
    from offramp.studies.comparison.reading import read_comparison

    with stage("reading the folders"):
        comparison = read_comparison(asked.folders, mixed=asked.mixed)
    with stage("writing the page"), COMPARISON_FOLDER.claimed(asked.output, overwrite=True) as made:
        write_comparison(comparison, made)
    comparison_terminal(comparison, out.console)
    for cell, why in comparison.failures.items():
        out.say(f"not compared: {cell}: {why}")
    page = asked.output / REPORT_FILE
    out.say(f"Report: {page}")
    out.finish(
        {
            "report": str(page),
            "tables": str(asked.output / TABLES),
            "citation": str(asked.output / CITATION_FILE),
            "rows": len(comparison.rows),
            "strategies": len(comparison.strategies),
            "failures": dict(comparison.failures),
            "notes": list(comparison.notes),
        }
    )


@dataclass(frozen=True, kw_only=True)
class ReportCommand(Mixed, Request):
    """Write the page of a run or a study again, from what is done so far; of several folders, one for all."""

    folders: Annotated[tuple[Path, ...], argument, flags(metavar="DIR")]
    """Folders of offramp run and offramp study run."""


def report(asked: ReportCommand, out: Output) -> None:
    """Write the page that the folders are of."""
    if len(asked.folders) > 1:
        compare(CompareCommand(folders=asked.folders, mixed=asked.mixed), out)
        return
    from offramp.report.pages import write_study_page
    from offramp.report.run_reading import RunReader
    from offramp.runs.folder import RUN_FOLDER
    from offramp.runs.outputs import require_done, write_outputs
    from offramp.studies.folder import StudyFolder

    folder = StudyFolder(asked.folders[0])
    if folder.read_plan().is_run:
        require_done(folder)
        with RUN_FOLDER.held(folder.path), stage("writing the page"):
            page = write_outputs(RunReader(folder.path)).report
    else:
        page = write_study_page(folder, mixed=asked.mixed)
    out.say(f"Report: {page}")
    out.finish({"folder": str(folder.path), "report": str(page)})
