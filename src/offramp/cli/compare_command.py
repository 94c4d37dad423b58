"""`offramp compare`: folders of studies and of runs side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from offramp.cli.console import Output
from offramp.kit.request import Options, Request, argument, flags
from offramp.tracing.progress import stage

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
    output: Annotated[Path, flags("--output", "-o")] = DEFAULT_FOLDER
    """Folder for the page, the tables and the citation."""


def compare(asked: CompareCommand, out: Output) -> None:
    """Write the page and the tables of a comparison, and show the main ones."""
    from offramp.report import REPORT_FILE
    from offramp.report.comparison import comparison_terminal
    from offramp.report.pages import CITATION_FILE, COMPARISON_FOLDER, TABLES, write_comparison
    from offramp.studies.comparison.reading import read_comparison

    COMPARISON_FOLDER.require(asked.output, overwrite=True)
    with stage("reading the folders"):
        comparison = read_comparison(asked.folders, mixed=asked.mixed)
    with stage("writing the page"), COMPARISON_FOLDER.claimed(asked.output, overwrite=True) as made:
        write_comparison(comparison, made)
    comparison_terminal(comparison, out.console)
    for cell, why in comparison.failures.items():
        out.say(f"not compared: {cell}: {why}")
    page = asked.output / REPORT_FILE
    out.say_page(page)
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
