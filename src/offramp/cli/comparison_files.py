"""The files that a comparison is written as: page, tables and citation."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from offramp.cli.run_folder import require_only
from offramp.files import write_text_atomically
from offramp.report import REPORT_FILE

if TYPE_CHECKING:
    from offramp.studies.comparison.results import Comparison

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
