"""A task that failed: why, kept beside where its result would be."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from offramp.errors import DamagedFileError, OfframpError
from offramp.kit.sealed_file import SealedFile

FAILURE = "failure.json"


@dataclass(frozen=True)
class Failure:
    """What went wrong with a task, where, and what to do; error: the name of the error's class."""

    what: str
    where: str = ""
    fix: str = ""
    error: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Failure:
        """The failure that an error means."""
        name = type(error).__name__
        if isinstance(error, OfframpError):
            return cls(error.what, error.where, error.fix, name)
        return cls(str(error) or name, error=name)


FILE = SealedFile(
    Failure, "the task failed, and the record of why is damaged", "run the study again with --retry"
)


def write_failure(folder: Path, failure: Failure) -> None:
    """Record that the task of a folder failed; its next try removes the record (see `remove_failure`)."""
    folder.mkdir(parents=True, exist_ok=True)
    FILE.write(folder / FAILURE, failure)


def read_failure(folder: Path) -> Failure | None:
    """Why the task of a folder failed, None if it did not. A damaged record is a failure that says so."""
    path = folder / FAILURE
    if not path.exists():
        return None
    try:
        return FILE.read(path)
    except DamagedFileError as error:
        return Failure.of(error)


def remove_failure(folder: Path) -> None:
    """Forget that the task of a folder failed, as before another try."""
    (folder / FAILURE).unlink(missing_ok=True)
