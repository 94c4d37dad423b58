"""JSON files that carry their own SHA-256, so that a changed byte is found and named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from offramp import files
from offramp.errors import DamagedFileError

TIMESTAMPS = "timestamps"
"""Left out of the seal, so that two runs that measure the same write the same seal."""


def write_sealed_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object of a trace with its seal in one step (see `offramp.files.write_sealed_json`)."""
    files.write_sealed_json(path, value, apart=(TIMESTAMPS,))


def read_sealed_json(path: Path) -> dict[str, Any]:
    """The object that `write_sealed_json` wrote, without its seal.

    Raises DamagedFileError, naming the file, if its bytes are not those that were written.
    """
    return files.read_sealed_json(path, damaged, apart=(TIMESTAMPS,))


def damaged(path: Path, why: str) -> DamagedFileError:
    """The error for a trace file whose bytes are not those that were written."""
    return DamagedFileError(
        f"a file of the trace is damaged: {path.name}: {why}",
        where=str(path),
        fix="run the command that made the trace again with --repair; it traces only the damaged parts again",
    )
