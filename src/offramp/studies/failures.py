"""A task that failed: why, kept beside where its result would be."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from offramp.errors import DamagedFileError, OfframpError
from offramp.files import read_sealed_json, write_sealed_json

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

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back as equal."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Failure:
        """The failure that `to_json` made an object of."""
        return cls(**value)


def write_failure(folder: Path, failure: Failure) -> None:
    """Record that the task of a folder failed; its next try removes the record (see `remove_failure`)."""
    folder.mkdir(parents=True, exist_ok=True)
    write_sealed_json(folder / FAILURE, failure.to_json())


def read_failure(folder: Path) -> Failure | None:
    """Why the task of a folder failed, None if it did not. A damaged record is a failure that says so."""
    path = folder / FAILURE
    if not path.exists():
        return None
    try:
        return Failure.from_json(read_sealed_json(path, _damaged))
    except DamagedFileError as error:
        return Failure.of(error)


def remove_failure(folder: Path) -> None:
    """Forget that the task of a folder failed, as before another try."""
    (folder / FAILURE).unlink(missing_ok=True)


def _damaged(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError(
        f"the task failed, and the record of why is damaged: {why}",
        where=str(path),
        fix="run the study again with --retry",
    )
