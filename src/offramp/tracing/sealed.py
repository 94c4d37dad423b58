"""JSON files that carry their own SHA-256, so that a changed byte is found and named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from offramp.errors import DamagedFileError
from offramp.files import canonical_json, pretty_json, sha256_of_text, write_text_atomically

SEAL = "sha256"

TIMESTAMPS = "timestamps"
"""Left out of the seal, so that two runs that measure the same write the same seal."""


def write_sealed_json(path: Path, value: dict[str, Any]) -> None:
    """Write a JSON object with its seal in one step (see `write_atomically`)."""
    write_text_atomically(path, pretty_json({**value, SEAL: _seal(value)}))


def read_sealed_json(path: Path) -> dict[str, Any]:
    """The object that `write_sealed_json` wrote, without its seal.

    Raises DamagedFileError, naming the file, if its bytes are not those that were written.
    """
    try:
        text = path.read_bytes().decode("utf-8")
        value = json.loads(text)
        seal = value.pop(SEAL)
        whole = seal == _seal(value) and text == pretty_json({**value, SEAL: seal})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise damaged(path, f"it is not what offramp writes ({type(error).__name__})") from error
    if not whole:
        raise damaged(path, "its bytes changed since it was written (SHA-256 differs)")
    return dict(value)


def _seal(value: dict[str, Any]) -> str:
    return sha256_of_text(canonical_json({key: part for key, part in value.items() if key != TIMESTAMPS}))


def damaged(path: Path, why: str) -> DamagedFileError:
    """The error for a trace file whose bytes are not those that were written."""
    return DamagedFileError(
        f"a file of the trace is damaged: {path.name}: {why}",
        where=str(path),
        fix="run the command that made the trace again with --repair; it traces only the damaged parts again",
    )
