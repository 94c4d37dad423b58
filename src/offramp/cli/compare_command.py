"""`offramp compare`: folders of studies and of runs side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offramp.cli.console import Output, stage
from offramp.cli.options import AsJson, Mixed
from offramp.cli.run_folder import require_only
from offramp.errors import InputError
from offramp.files import write_text_atomically
from offramp.report import REPORT_FILE

if TYPE_CHECKING:
    from offramp.studies.comparison.results import Comparison

DEFAULT_FOLDER = Path("runs/comparison")


def compare(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="DIR", help="Folders of offramp study run and offramp run.", show_default=False
        ),
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Folder for the page, the tables and the citation.")
    ] = DEFAULT_FOLDER,
    pair: Annotated[
        list[str] | None,
        typer.Option(
            "--pair",
            metavar="A=B",
            help="Two models to hold against each other: smollm2='smollm2 + int8' (write ' = ' if "
            "the first name has a =). May be given several times.",
            show_default=False,
        ),
    ] = None,
    mixed: Mixed = False,
    as_json: AsJson = False,
) -> None:
    """Compare models, strategies and texts: leaderboard, pairs, trends, and which score predicts savings."""
    from offramp.cli.compare_command import CITATION_FILE, TABLES, require_own, write_comparison
    from offramp.report.terminal import comparison_terminal
    from offramp.studies.comparison.reading import read_comparison

    out = Output(as_json)
    pairs = [_read_pair(text) for text in pair or []]
    require_own(output)
    with stage("reading the folders"):
        comparison = read_comparison(folders, pairs=pairs, mixed=mixed)
    with stage("writing the page"):
        page = write_comparison(comparison, output)
    comparison_terminal(comparison, out.console)
    for cell, why in comparison.failures.items():
        out.console.print(f"not compared: {cell}: {why}", markup=False, soft_wrap=True)
    out.console.print(f"Report: {page}", markup=False, soft_wrap=True)
    out.finish(
        {
            "report": str(page),
            "tables": str(output / TABLES),
            "citation": str(output / CITATION_FILE),
            "rows": len(comparison.rows),
            "strategies": len(comparison.strategies),
            "pairs": len(comparison.pairs),
            "failures": dict(comparison.failures),
            "notes": list(comparison.notes),
        }
    )


def _read_pair(text: str) -> tuple[str, str]:
    """The two models of "A=B"; of "A = B", where a name holds the sign. Raises InputError if not two."""
    sign = " = " if " = " in text else "="
    first, separator, second = (part.strip() for part in text.partition(sign))
    if not (first and separator and second):
        raise InputError(
            f"the pair {text!r} does not name two models",
            where="--pair",
            fix="write --pair FIRST=SECOND, as --pair smollm2='smollm2 + int8'",
        )
    return first, second


TABLES = "tables"
CITATION_FILE = "citation.bib"
OWN = (REPORT_FILE, TABLES, CITATION_FILE)


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write `report.html`, `tables/` (CSV and Parquet) and `citation.bib` into a folder; the page's path."""
    from offramp.report.page import write_comparison_page
    from offramp.studies.comparison.tables import write_tables

    folder.mkdir(parents=True, exist_ok=True)
    write_tables(comparison, folder / TABLES)
    write_text_atomically(folder / CITATION_FILE, comparison.citation)
    return write_comparison_page(comparison, folder / REPORT_FILE)


def require_own(folder: Path) -> None:
    """Make sure that the folder is absent, empty or that of an earlier comparison.

    Raises InputError if not: the page of a run or a study has the same name.
    """
    require_only(folder, OWN, "the output folder holds files that are not a comparison")
