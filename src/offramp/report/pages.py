"""Pages in folders: that of a comparison with its tables, and that of a study in the study's own folder."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from offramp.errors import DamagedFileError
from offramp.files import (
    json_object_in,
    sha256_of_file,
    source_fingerprint,
    write_json_atomically,
    write_text_atomically,
)
from offramp.kit.output_folder import UNKNOWN, Files, OutputFolder, OwnFiles
from offramp.report import REPORT_FILE
from offramp.tracing.progress import stage

if TYPE_CHECKING:
    from offramp.studies.comparison.results import Comparison
    from offramp.studies.folder import StudyFolder
    from offramp.studies.study import StudyPlan

TABLES = "tables"
CITATION_FILE = "citation.bib"
STAMP = "report.json"
"""What the page was written from, beside it: a finished study is then not compared again to say the same."""


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write `report.html`, `tables/` (CSV and Parquet) and `citation.bib` into a folder; the page's path."""
    from offramp.report.comparison_data import comparison_tables
    from offramp.report.comparison_page import write_comparison_page
    from offramp.report.table import write_tables

    write_tables(comparison_tables(comparison), folder / TABLES)
    write_text_atomically(folder / CITATION_FILE, comparison.citation)
    return write_comparison_page(comparison, folder / REPORT_FILE)


def _own_pages(folder: Path) -> Files | None:
    """What in a folder are a page and its tables, which its record lists; None where none were written."""
    return {} if any(name.startswith(f"{TABLES}/") for name in OwnFiles(folder).listed()) else None


COMPARISON_FOLDER: OutputFolder[None] = OutputFolder(
    what="a comparison", own=_own_pages, done=REPORT_FILE, alone=True
)
"""The page of a run or of a study has the same name."""


def folder_of(name: str, output: Path | None) -> Path:
    """Where a study lies if no folder is named: the same name always finds the same one."""
    return Path("runs") / f"study-{name}" if output is None else output


def _own_study(folder: Path) -> Files | None:
    """What in a folder is of a study and its report, whatever lies below that; of one that was killed before
    it wrote anything, its empty files.
    """
    from offramp.studies.folder import EXECUTIONS, JOURNAL, PLAN, TASKS, StudyFolder
    from offramp.studies.task import FINGERPRINTS

    names = (PLAN, JOURNAL, TASKS, FINGERPRINTS, "locks", "logs", EXECUTIONS)
    plan = _plan_in(folder)
    if plan is not None and plan.is_run:
        return None
    if StudyFolder(folder).is_begun:
        return dict.fromkeys((*names, REPORT_FILE, STAMP, TABLES, CITATION_FILE))
    empty = [name for name in names if (folder / name).is_file() and not (folder / name).stat().st_size]
    return dict.fromkeys(empty) or None


def _plan_in(folder: Path) -> StudyPlan | None:
    """The plan of the study that was run into a folder; None if none was, or it is damaged."""
    from offramp.studies.folder import PLAN, StudyFolder

    try:
        return StudyFolder(folder).read_plan() if (folder / PLAN).is_file() else None
    except DamagedFileError:
        return None


def _study_in(folder: Path) -> dict[str, str] | None:
    plan = _plan_in(folder)
    return None if plan is None else {"name": plan.study.name}


STUDY_FOLDER: OutputFolder[dict[str, str]] = OutputFolder(
    what="a study", own=_own_study, elsewhere=_study_in, alone=True
)
"""A run has a page of the same name, and another study its own plan. Several processes work in one at once,
each with the lock of its task (`offramp.studies.locks`)."""


def write_study_page(folder: StudyFolder, *, mixed: bool = False) -> Path:
    """Write the comparison of what is done into the study's own folder; the page's path."""
    from offramp.studies.comparison.reading import read_comparison
    from offramp.studies.locks import REPORT, holding

    stamp = {**_content(folder), "mixed": mixed}
    with stage("writing the report"), holding(folder.locks / REPORT, wait=True):
        # What the study itself leaves vouches for itself.
        owned = OwnFiles(folder.path, {STAMP: UNKNOWN, **(_own_pages(folder.path) or {})})
        with owned.replaced(REPORT_FILE) as made:
            write_comparison(read_comparison([folder.path], mixed=mixed), made)
        with owned.writing(STAMP):
            write_json_atomically(folder.path / STAMP, {**stamp, **_written(folder)})
    return folder.path / REPORT_FILE


def study_page(folder: StudyFolder) -> Path:
    """The page of a study, brought up to date.

    It is kept if plan, journal and the code that writes it are those that it was written from, and it and its
    tables are as they were written.

    Raises InputError where there is nothing to compare.
    """
    if json_object_in(folder.path / STAMP) == {**_content(folder), "mixed": False, **_written(folder)}:
        return folder.path / REPORT_FILE
    return write_study_page(folder)


def _content(folder: StudyFolder) -> dict[str, str]:
    """SHA-256 of all that a report follows from: plan, journal (every result has its line there), code."""
    from offramp.studies.folder import JOURNAL, PLAN

    files = {name: folder.path / name for name in (PLAN, JOURNAL)}
    digests = {name: sha256_of_file(path) for name, path in files.items() if path.is_file()}
    return {**digests, "code": source_fingerprint("report", "studies", "scoring")}


def _written(folder: StudyFolder) -> dict[str, str]:
    """SHA-256 of the page and its tables, by their names."""
    paths = [folder.path / REPORT_FILE, *sorted((folder.path / TABLES).glob("*"))]
    return {path.name: sha256_of_file(path) for path in paths if path.is_file()}
