"""The folder of a study as the commands choose it: where it lies, and that nothing else is in it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from offramp.cli.console import Output
from offramp.errors import DamagedFileError, InputError
from offramp.files import JsonError, read_json, require_writable
from offramp.kit.output_folder import CHANGED, UNKNOWN, OutputFolder
from offramp.report import REPORT_FILE
from offramp.tracing.progress import stage

if TYPE_CHECKING:
    from offramp.studies.folder import StudyFolder


def folder_of(name: str, output: Path | None) -> Path:
    """Where a study lies if no folder is named: the same name always finds the same one."""
    return Path("runs") / f"study-{name}" if output is None else output


def require_own(folder: Path, name: str) -> None:
    """Make sure that the folder is absent, empty or that of the study with this name.

    Raises InputError if not: a run has a page of the same name, and another study its own plan.
    """
    from offramp.cli.compare_command import CITATION_FILE, TABLES
    from offramp.cli.study_folder import STAMP
    from offramp.report import REPORT_FILE
    from offramp.studies.fingerprints import FILE
    from offramp.studies.folder import EXECUTIONS, JOURNAL, PLAN, TASKS

    require_writable(folder)
    entries = set(OutputFolder(folder).entries())
    of_study = {PLAN, JOURNAL, TASKS, FILE, "locks", "logs", EXECUTIONS}
    of_report = {REPORT_FILE, STAMP, TABLES, CITATION_FILE}
    begun = entries & {JOURNAL, TASKS, FILE, "locks"}  # what is there before and beside the plan
    expected = of_study | (of_report if begun else set())
    others = [entry for entry in sorted(entries) if entry.partition(CHANGED)[0] not in expected]
    if PLAN in entries and not begun and _study_in(folder) is None:
        others.append(PLAN)
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


def _study_in(folder: Path) -> str | None:
    """The name of the study that was run into a folder; None if none was, or its plan is damaged."""
    from offramp.studies.folder import PLAN, StudyFolder

    if not (folder / PLAN).is_file():
        return None
    try:
        return str(StudyFolder(folder).read_plan().study["study"]["name"])
    except DamagedFileError:
        return None


STAMP = "report.json"
"""What the page was written from, beside it: a finished study is then not compared again to say the same."""


def write_report(folder: StudyFolder, *, mixed: bool) -> Path:
    """Write the comparison of what is done into the study's own folder; the page's path."""
    from offramp.cli.compare_command import write_comparison
    from offramp.files import write_json_atomically
    from offramp.studies.comparison.reading import read_comparison
    from offramp.studies.locks import holding

    stamp = {**_content(folder), "mixed": mixed}
    with stage("writing the report"), holding(folder.locks / "report", wait=True):
        owned = _owned(folder.path)
        with owned.replaced(REPORT_FILE) as made:
            write_comparison(read_comparison([folder.path], mixed=mixed), made)
        with owned.writing(STAMP):
            write_json_atomically(folder.path / STAMP, {**stamp, **_written(folder)})
    return folder.path / REPORT_FILE


def _owned(folder: Path) -> OutputFolder:
    """The folder of a study: what its report leaves. What the study itself leaves vouches for itself."""
    from offramp.cli.compare_command import owned_pages

    owned = owned_pages(folder)
    return OutputFolder(folder, {STAMP: UNKNOWN, **owned.listed()})


def report_of_run(out: Output, folder: StudyFolder) -> Path | None:
    """Bring the report up to date at the end of a run and say where it lies; None, and why, if there is none.

    A page is kept if plan, journal and the code that writes it are those that it was written from, and it and
    its tables are as they were written.
    """
    page = folder.path / REPORT_FILE
    try:
        if _stamp(folder) != {**_content(folder), "mixed": False, **_written(folder)}:
            page = write_report(folder, mixed=False)
    except InputError as error:
        out.console.print(f"no report: {error}", markup=False, soft_wrap=True)
        return None
    show_report(out, page)
    return page


def show_report(out: Output, report: Path) -> None:
    """Say where the page lies."""
    out.console.print(f"Report: {report}", markup=False, soft_wrap=True)


def _content(folder: StudyFolder) -> dict[str, str]:
    """SHA-256 of all that a report follows from: plan, journal (every result has its line there), code."""
    from offramp.files import sha256_of_file, source_fingerprint
    from offramp.studies.folder import JOURNAL, PLAN

    files = {name: folder.path / name for name in (PLAN, JOURNAL)}
    digests = {name: sha256_of_file(path) for name, path in files.items() if path.is_file()}
    return {**digests, "code": source_fingerprint("report", "studies", "scoring", "cli")}


def _written(folder: StudyFolder) -> dict[str, str]:
    """SHA-256 of the page and its tables, by their names."""
    from offramp.cli.compare_command import TABLES
    from offramp.files import sha256_of_file

    paths = [folder.path / REPORT_FILE, *sorted((folder.path / TABLES).glob("*"))]
    return {path.name: sha256_of_file(path) for path in paths if path.is_file()}


def _stamp(folder: StudyFolder) -> object:
    try:
        stamp: object = read_json(folder.path / STAMP)
    except (OSError, JsonError):  # there is none, or it is damaged: the page is written again
        return None
    return stamp
