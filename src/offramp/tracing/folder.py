"""The folder of a trace: what in it is a trace's, and which of its files are damaged."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from offramp.errors import DamagedFileError
from offramp.files import json_object_in
from offramp.kit.output_folder import UNKNOWN, OutputFolder
from offramp.kit.sealed_file import is_laid_out
from offramp.tracing.manifest import MANIFEST, REQUEST, Manifest, read_manifest
from offramp.tracing.plan import ANSWERS, ANSWERS_FILE, Answers
from offramp.tracing.request import TraceRequest
from offramp.tracing.sealed_parts import (
    FILE_KINDS,
    is_unsealed,
    part_path,
    seal_path,
    sealed_files,
    trace_file,
)
from offramp.tracing.states import states_files

_PART_FILE = re.compile(rf"part-\d{{5}}\.json|({'|'.join(FILE_KINDS)})-\d{{5}}\.parquet")
_RECORDS = {REQUEST: TraceRequest, MANIFEST: Manifest, ANSWERS: Answers}
"""What the JSON files of a trace hold. Other programs and other commands of offramp use their names too."""


def files_of_trace(folder: Path) -> dict[str, str | None]:
    """What in the folder of a trace is its own: its seals say so, and the files of a part that a killed trace
    did not seal themselves. What was damaged is so by its name; of a record that is no JSON any more, where
    there are parts with whole seals.
    """
    paths = [path for path in folder.glob("*.*") if _PART_FILE.fullmatch(path.name)]
    parts = {path.name: None if is_unsealed(path) else UNKNOWN for path in paths}
    sealed, there = sealed_files(folder), [name for name in _RECORDS if (folder / name).is_file()]
    broken = {name: UNKNOWN for name in there if sealed and json_object_in(folder / name) is None}
    records = {name: None for name in _RECORDS if _is_ours(folder, name)}
    return {**parts, **broken, **records, **sealed, **states_files(folder)}


def _own(folder: Path) -> dict[str, str | None] | None:
    parts = any(folder.glob("part-*.json"))
    is_trace = _is_ours(folder, REQUEST) or (parts and _is_ours(folder, MANIFEST)) or sealed_files(folder)
    return files_of_trace(folder) if is_trace else None


def _is_ours(folder: Path, name: str) -> bool:
    """Whether a JSON file is one of a trace, damaged or not."""
    return is_laid_out(folder / name, [field.name for field in dataclasses.fields(_RECORDS[name])])


def _request_in_manifest(folder: Path) -> dict[str, Any] | None:
    return read_manifest(folder).request if os.path.lexists(folder / MANIFEST) else None


TRACE_FOLDER = OutputFolder(
    what="a trace",
    own=_own,
    done=MANIFEST,
    request=trace_file(dict[str, Any]),  # one of an older version has fewer entries than `TraceRequest`
    request_name=REQUEST,
    elsewhere=_request_in_manifest,
    writes=_RECORDS,
    kept=True,
)


def require_whole(folder: Path, *, repair: bool) -> None:
    """Make sure that manifest and answers are as they were written, or remove them to be made again.

    Raises DamagedFileError for one that is not, unless `repair`; InputError for a newer offramp's.
    """
    _read(folder / MANIFEST, lambda path: read_manifest(path.parent), forgive=repair)
    _read(folder / ANSWERS, ANSWERS_FILE.read, forgive=repair)


def _read(path: Path, read: Callable[[Path], object], *, forgive: bool) -> None:
    try:
        if os.path.lexists(path):
            read(path)
    except DamagedFileError:
        if not forgive:
            raise
        path.unlink()


def remove_part(folder: Path, index: int) -> None:
    """Delete a part and what vouches for it."""
    (folder / MANIFEST).unlink(missing_ok=True)
    seal_path(folder, index).unlink(missing_ok=True)
    for kind in reversed(FILE_KINDS):
        part_path(folder, kind, index).unlink(missing_ok=True)
