"""`-o` of a command that writes one JSON file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from offramp.errors import InputError
from offramp.files import json_object_in


def require_json_file(path: Path, what: str, is_own: Callable[[Mapping[str, Any]], bool]) -> None:
    """Refuse an output that cannot be a JSON file, or is another's.

    what: it is to be, such as "a tuned policy". is_own: whether a JSON object is one that the same command
    wrote, of whatever version; only such a one is replaced.

    Raises InputError, before anything is computed.
    """
    fix = "choose another file with -o"
    if path.suffix != ".json":
        raise InputError(
            "the output's name does not end in .json",
            where=str(path),
            fix=f"write -o {path.stem or 'result'}.json",
        )
    if path.is_dir() or not path.absolute().parent.is_dir():
        lies = "a folder" if path.is_dir() else "in a folder that does not exist"
        raise InputError(f"the output is {lies}", where=str(path), fix=fix)
    if not os.access(path.absolute().parent, os.W_OK | os.X_OK):
        raise InputError("the output's folder may not be written", where=str(path), fix=fix)
    if path.exists() and not _holds(path, is_own):
        raise InputError(
            f"the output is there already, and holds no {what.split(' ', 1)[1]}", where=str(path), fix=fix
        )


def _holds(path: Path, is_own: Callable[[Mapping[str, Any]], bool]) -> bool:
    value = json_object_in(path)
    return value is not None and is_own(value)
