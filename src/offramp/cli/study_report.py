"""The report of a study in its own folder: written where something changed, kept where nothing did."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from offramp.cli.console import Output, stage
from offramp.errors import InputError
from offramp.report import REPORT_FILE

if TYPE_CHECKING:
    from offramp.studies.folder import StudyFolder

STAMP = "report.json"
"""What the page was written from, beside it: a finished study is then not compared again to say the same."""


def write_report(folder: StudyFolder, *, mixed: bool) -> Path:
    """Write the comparison of what is done into the study's own folder; the page's path."""
    from offramp.cli.comparison_files import write_comparison
    from offramp.files import write_json_atomically
    from offramp.studies.comparison.reading import read_comparison

    stamp = {**_content(folder), "mixed": mixed}
    with stage("writing the report"):
        page = write_comparison(read_comparison([folder.path], mixed=mixed), folder.path)
    write_json_atomically(folder.path / STAMP, {**stamp, **_written(folder)})
    return page


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
    from offramp.cli.comparison_files import TABLES
    from offramp.files import sha256_of_file

    paths = [folder.path / REPORT_FILE, *sorted((folder.path / TABLES).glob("*"))]
    return {path.name: sha256_of_file(path) for path in paths if path.is_file()}


def _stamp(folder: StudyFolder) -> object:
    try:
        return json.loads((folder.path / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):  # there is none, or it is damaged: the page is written again
        return None
