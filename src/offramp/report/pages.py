"""Pages in folders: that of a comparison with its tables, and that of a study in the study's own folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.errors import DamagedFileError, InputError
from offramp.files import (
    JsonError,
    locked_folder,
    read_json,
    require_writable,
    sha256_of_file,
    source_fingerprint,
    write_json_atomically,
    write_text_atomically,
)
from offramp.kit.output_folder import CHANGED, UNKNOWN, OutputFolder, files_below
from offramp.report import REPORT_FILE
from offramp.tracing.progress import stage

if TYPE_CHECKING:
    from offramp.studies.comparison.results import Comparison
    from offramp.studies.folder import StudyFolder

TABLES = "tables"
OLDER_TABLES = ("cells", "eas_fits", "eas_models", "left_out", "models", "pairs", "trends")
"""Names of tables that are no longer written."""
CITATION_FILE = "citation.bib"
MADE_BY = "Made by offramp."
"""What every page says, and always said, at its end."""
STAMP = "report.json"
"""What the page was written from, beside it: a finished study is then not compared again to say the same."""


def write_comparison(comparison: Comparison, folder: Path) -> Path:
    """Write `report.html`, `tables/` (CSV and Parquet) and `citation.bib` into a folder; the page's path."""
    from offramp.report.comparison import write_comparison_page
    from offramp.report.comparison_data import comparison_tables
    from offramp.report.table import write_tables

    write_tables(comparison_tables(comparison), folder / TABLES)
    write_text_atomically(folder / CITATION_FILE, comparison.citation)
    return write_comparison_page(comparison, folder / REPORT_FILE)


def owned_pages(folder: Path) -> OutputFolder:
    """The folder of a page with its tables. One that an older offramp wrote, which kept no record, is told by
    what its page says; what lies there under other names than those of its tables is somebody's.
    """
    from offramp.report.comparison_data import NAMES

    owned = OutputFolder(folder)
    found = sorted(path for path in (folder / TABLES).glob("*") if path.stem in (*NAMES, *OLDER_TABLES))
    if owned.listed() or not found or not _is_page(folder / REPORT_FILE):
        return owned
    names = (REPORT_FILE, CITATION_FILE, *(f"{TABLES}/{path.name}" for path in found))
    return OutputFolder(folder, dict.fromkeys(names))


def _is_page(path: Path) -> bool:
    """Whether a file is a page that offramp wrote: its last line says so."""
    return path.is_file() and not path.is_symlink() and MADE_BY.encode() in path.read_bytes()


def require_own_pages(folder: Path) -> None:
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

    Raises what `require_own_pages` raises.
    """
    require_own_pages(folder)
    existed = folder.exists()
    with locked_folder(folder):
        require_own_pages(folder)  # as it is now that nobody else writes
        try:
            with owned_pages(folder).replaced(REPORT_FILE) as made:
                yield made
        except Exception:
            if not existed:
                OutputFolder(folder).leave()
            raise


def folder_of(name: str, output: Path | None) -> Path:
    """Where a study lies if no folder is named: the same name always finds the same one."""
    return Path("runs") / f"study-{name}" if output is None else output


def require_own_study(folder: Path, name: str) -> None:
    """Make sure that the folder is absent, empty or that of the study with this name.

    Raises InputError if not: a run has a page of the same name, and another study its own plan.
    """
    from offramp.studies.fingerprints import FILE
    from offramp.studies.folder import EXECUTIONS, JOURNAL, PLAN, TASKS, StudyFolder

    require_writable(folder)
    begun = StudyFolder(folder).is_begun
    of_study = {PLAN, JOURNAL, TASKS, FILE, "locks", "logs", EXECUTIONS}
    of_report = {REPORT_FILE, STAMP, TABLES, CITATION_FILE}
    expected = of_study | of_report if begun else {name for name in of_study if _is_bare(folder / name)}
    entries = OutputFolder(folder).entries()
    others = [entry for entry in entries if entry.partition(CHANGED)[0] not in expected]
    if others:
        raise InputError(
            f"the study's folder holds files of something else: {', '.join(others[:3])}",
            where=str(folder),
            fix=("move that away, or " if begun else "") + "choose another folder with -o",
        )
    found = _study_in(folder)
    if found not in (None, name):
        raise InputError(
            f"the folder is that of the study {found!r}",
            where=str(folder),
            fix="choose another folder with -o, or name the study so in its file",
        )


def _is_bare(path: Path) -> bool:
    """Whether it is an empty file, or a folder without files: a process that was killed leaves some."""
    if path.is_dir():
        return not path.is_symlink() and not files_below(path)
    return path.is_file() and not path.stat().st_size


def _study_in(folder: Path) -> str | None:
    """The name of the study that was run into a folder; None if none was, or its plan is damaged."""
    from offramp.studies.folder import PLAN, StudyFolder

    if not (folder / PLAN).is_file():
        return None
    try:
        return str(StudyFolder(folder).read_plan().study["study"]["name"])
    except DamagedFileError:
        return None


def write_study_page(folder: StudyFolder, *, mixed: bool = False) -> Path:
    """Write the comparison of what is done into the study's own folder; the page's path."""
    from offramp.studies.comparison.reading import read_comparison
    from offramp.studies.locks import REPORT, holding

    stamp = {**_content(folder), "mixed": mixed}
    with stage("writing the report"), holding(folder.locks / REPORT, wait=True):
        owned = _owned(folder.path)
        with owned.replaced(REPORT_FILE) as made:
            write_comparison(read_comparison([folder.path], mixed=mixed), made)
        with owned.writing(STAMP):
            write_json_atomically(folder.path / STAMP, {**stamp, **_written(folder)})
    return folder.path / REPORT_FILE


def _owned(folder: Path) -> OutputFolder:
    """The folder of a study: what its report leaves. What the study itself leaves vouches for itself."""
    owned = owned_pages(folder)
    return OutputFolder(folder, {STAMP: UNKNOWN, **owned.listed()})


def study_page(folder: StudyFolder) -> Path:
    """The page of a study, brought up to date.

    It is kept if plan, journal and the code that writes it are those that it was written from, and it and its
    tables are as they were written.

    Raises InputError where there is nothing to compare.
    """
    if _stamp(folder) == {**_content(folder), "mixed": False, **_written(folder)}:
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


def _stamp(folder: StudyFolder) -> object:
    try:
        stamp: object = read_json(folder.path / STAMP)
    except (OSError, JsonError):  # there is none, or it is damaged: the page is written again
        return None
    return stamp
