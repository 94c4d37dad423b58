"""`offramp compare`: folders of studies and of runs side by side."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from offramp.cli.console import Output
from offramp.cli.options import AsJson, Mixed
from offramp.errors import InputError
from offramp.files import locked_folder, require_writable, write_text_atomically
from offramp.kit.output_folder import OutputFolder
from offramp.report import REPORT_FILE
from offramp.tracing.progress import stage

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
            "--pair", metavar="A=B", help="Refused: experiments/claims/pairs.py does it.", hidden=True
        ),
    ] = None,
    mixed: Mixed = False,
    as_json: AsJson = False,
) -> None:
    """Compare models, strategies and texts: leaderboard, strategies, and scores beside what is saved."""
    from offramp.cli.compare_command import CITATION_FILE, TABLES, new_pages, require_own, write_comparison
    from offramp.report.terminal import comparison_terminal
    from offramp.studies.comparison.reading import read_comparison

    out = Output(as_json)
    if pair:
        raise InputError(
            "models are no longer held against each other here",
            where="--pair",
            fix="run pairs.py DIR... --pair FIRST SECOND, in experiments/claims of offramp's repository",
        )
    require_own(output)
    with stage("reading the folders"):
        comparison = read_comparison(folders, mixed=mixed)
    with stage("writing the page"), new_pages(output) as made:
        write_comparison(comparison, made)
    page = output / REPORT_FILE
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
            "failures": dict(comparison.failures),
            "notes": list(comparison.notes),
        }
    )


TABLES = "tables"
CITATION_FILE = "citation.bib"


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write `report.html`, `tables/` (CSV and Parquet) and `citation.bib` into a folder; the page's path."""
    from offramp.report.page import write_comparison_page
    from offramp.studies.comparison.tables import write_tables

    write_tables(comparison, folder / TABLES)
    write_text_atomically(folder / CITATION_FILE, comparison.citation)
    return write_comparison_page(comparison, folder / REPORT_FILE)


def owned_pages(folder: Path) -> OutputFolder:
    """The folder of a page with its tables. One that an older offramp wrote is told by what lies in it."""
    owned = OutputFolder(folder)
    tables = sorted(path.name for path in (folder / TABLES).glob("*"))
    known = {"cells.jsonl", "left_out.csv", "models.csv"}.intersection(tables)
    if owned.listed() or not known or not (folder / REPORT_FILE).is_file():
        return owned
    return OutputFolder(
        folder, dict.fromkeys([REPORT_FILE, CITATION_FILE, *(f"{TABLES}/{t}" for t in tables)])
    )


def require_own(folder: Path) -> None:
    """Make sure that the folder is absent, empty or that of an earlier page with its tables.

    Raises InputError if not: the page of a run or a study has the same name.
    """
    require_writable(folder)
    owned = owned_pages(folder)
    is_page = any(name.startswith(f"{TABLES}/") for name in owned.listed())
    if others := owned.foreign() if is_page else owned.entries():
        raise InputError(
            f"the output folder holds files that are not a comparison: {', '.join(others[:3])}",
            where=str(folder),
            fix="choose another folder with -o",
        )


@contextlib.contextmanager
def new_pages(folder: Path) -> Iterator[Path]:
    """A folder to write a page and tables into, which then take the place of those in `folder`.

    Raises what `require_own` raises.
    """
    require_own(folder)
    existed = folder.exists()
    with locked_folder(folder):
        require_own(folder)  # as it is now that nobody else writes
        try:
            with owned_pages(folder).replaced(REPORT_FILE) as made:
                yield made
        except Exception:
            if not existed:
                OutputFolder(folder).leave()
            raise
