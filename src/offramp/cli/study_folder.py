"""The folder of a study as the commands choose it: where it lies, and that nothing else is in it."""

from __future__ import annotations

from pathlib import Path

from offramp.cli.run_folder import require_only
from offramp.errors import DamagedFileError, InputError


def folder_of(name: str, output: Path | None) -> Path:
    """Where a study lies if no folder is named: the same name always finds the same one."""
    return Path("runs") / f"study-{name}" if output is None else output


def require_own(folder: Path, name: str) -> None:
    """Make sure that the folder is absent, empty or that of the study with this name.

    Raises InputError if not: a run has a page of the same name, and another study its own plan.
    """
    from offramp.cli.comparison_files import CITATION_FILE, TABLES
    from offramp.cli.study_report import STAMP
    from offramp.report import REPORT_FILE
    from offramp.studies.fingerprints import FILE
    from offramp.studies.folder import JOURNAL, PLAN, TASKS

    own = {PLAN, JOURNAL, TASKS, FILE, "locks", "logs", REPORT_FILE, STAMP, TABLES, CITATION_FILE}
    require_only(folder, own, "the study's folder holds files of something else")
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
