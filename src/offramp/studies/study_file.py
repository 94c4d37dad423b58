"""Study files: read, and what they say held against one another."""

from __future__ import annotations

from pathlib import Path

from offramp.records.given_file import read_toml
from offramp.studies.checks import check_study
from offramp.studies.study import WHAT, Study


def read_study(path: str | Path) -> Study:
    """The study that a TOML file describes.

    Raises InputError, with the line and the key, for a file that cannot be read, is no TOML, has an unknown
    axis or key, or a value that does not fit; and what `offramp.studies.checks.check_study` refuses.
    """
    study = Study.of(*read_toml(Path(path), WHAT))
    check_study(study)
    return study
