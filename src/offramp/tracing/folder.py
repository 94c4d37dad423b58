"""The folder of a trace: whose it is, which of its files are damaged, and how an old trace is cleared."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from offramp.errors import DamagedFileError, InputError
from offramp.files import sweep_temporary_files
from offramp.kit.output_folder import UNKNOWN, OutputFolder
from offramp.kit.sealed_file import is_laid_out
from offramp.tracing.answers import ANSWERS, ANSWERS_FILE, Answers
from offramp.tracing.manifest import MANIFEST, REQUEST, Manifest, read_manifest
from offramp.tracing.part import FILE_KINDS, part_path, seal_path, sealed_files, trace_file
from offramp.tracing.request import TraceRequest
from offramp.tracing.streamed_states import STATES_FOLDER, states_files

Content = TypeVar("Content")

_PART_FILE = re.compile(rf"part-\d{{5}}\.json|({'|'.join(FILE_KINDS)})-\d{{5}}\.parquet")
_REQUEST_FILE = trace_file(dict[str, Any])  # one of an older version has fewer entries than `TraceRequest`
_RECORDS = {REQUEST: TraceRequest, MANIFEST: Manifest, ANSWERS: Answers}
"""What the JSON files of a trace hold. Other programs and other commands of offramp use their names too."""


def refuse_foreign_files(folder: Path) -> None:
    """Make sure that the folder is absent, empty or that of a trace.

    Raises InputError if it holds other files; nothing is written into it.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(
            "the output is a file, not a folder", where=str(folder), fix="choose another with -o"
        )
    parts = any(folder.glob("part-*.json"))
    if _is_ours(folder, REQUEST) or (parts and _is_ours(folder, MANIFEST)):
        return
    if OutputFolder(folder).entries():
        raise InputError(
            "the folder holds files that are not a trace",
            where=str(folder),
            fix="choose an empty or a new folder with -o",
        )


def _is_ours(folder: Path, name: str) -> bool:
    """Whether a JSON file is one of a trace, damaged or not."""
    return is_laid_out(folder / name, [field.name for field in dataclasses.fields(_RECORDS[name])])


@contextlib.contextmanager
def prepared_folder(folder: Path, request: TraceRequest, *, overwrite: bool, repair: bool) -> Iterator[Path]:
    """The locked folder, ready for this request: empty, or holding whole files of this very request; or,
    while another trace lies there that is overwritten, one inside, which takes the other's place in the end.

    Raises InputError if it holds another trace, saying what differs, unless `overwrite`, and for a file of
    others that stands in the place of one of a trace; DamagedFileError if one of its JSON files changed,
    unless `repair`: the file is then made again.
    """
    refuse_foreign_files(folder)
    sweep_temporary_files(folder)
    owned = owned_trace(folder)
    owned.finish_replacing(MANIFEST)
    owned.require_free(_RECORDS)
    found = _found_request(folder, forgive=overwrite or repair)
    if found is not None and found != request.to_json() and _holds_work(folder):
        if not overwrite:
            asked = request.to_json()
            differs = [key for key in {**asked, **found} if found.get(key) != asked.get(key)]
            raise InputError(
                "the folder holds another trace (it differs in: " + ", ".join(differs) + ")",
                where=str(folder),
                fix="choose another folder (output=, -o), or give overwrite=True (--overwrite) to replace it",
            )
        with owned.replaced(
            MANIFEST, goes_on=lambda made: _found_request(made, forgive=True) == request.to_json()
        ) as made:
            _REQUEST_FILE.write(made / REQUEST, request.to_json())
            yield made
        owned.unlist(*owned.listed())  # its own seals vouch for it
        return
    _read(folder / MANIFEST, lambda path: read_manifest(path.parent), forgive=repair)
    _read(folder / ANSWERS, ANSWERS_FILE.read, forgive=repair)
    _REQUEST_FILE.write(folder / REQUEST, request.to_json())
    yield folder


def owned_trace(folder: Path) -> OutputFolder:
    """The folder of a trace, whose seals say what is ours in it. What was damaged is ours by its name."""
    names = [path.name for path in folder.glob("*.*") if _PART_FILE.fullmatch(path.name)]
    own: dict[str, str | None] = dict.fromkeys(names, UNKNOWN)
    own |= {name: None for name in _RECORDS if _is_ours(folder, name)}
    return OutputFolder(folder, {**own, **sealed_files(folder), **states_files(folder)})


def _holds_work(folder: Path) -> bool:
    """Whether anything was measured or answered here; a request that was refused later leaves neither."""
    found = (folder / name for name in (MANIFEST, ANSWERS, STATES_FOLDER))
    return any(folder.glob("*.parquet")) or any(path.exists() for path in found)


def _found_request(folder: Path, *, forgive: bool) -> dict[str, Any] | None:
    """The request that the folder answers, None if that is unknown."""
    found = _read(folder / REQUEST, _REQUEST_FILE.read, forgive=forgive)
    if found is not None:
        return found
    manifest = _read(folder / MANIFEST, lambda path: read_manifest(path.parent), forgive=forgive)
    return None if manifest is None else manifest.request


def _read(path: Path, read: Callable[[Path], Content], *, forgive: bool) -> Content | None:
    """A sealed file's content; None if there is none, or if it is damaged and may be deleted."""
    if not path.exists():
        return None
    try:
        return read(path)
    except DamagedFileError:
        if not forgive:
            raise
        if path.name != REQUEST:  # which is replaced at once: without it the folder would be nobody's
            path.unlink()
        return None


def remove_part(folder: Path, index: int) -> None:
    """Delete a part and what vouches for it."""
    (folder / MANIFEST).unlink(missing_ok=True)
    seal_path(folder, index).unlink(missing_ok=True)
    for kind in reversed(FILE_KINDS):
        part_path(folder, kind, index).unlink(missing_ok=True)
