"""The folder of a trace: whose it is, which of its files are damaged, and how an old trace is cleared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from offramp.errors import DamagedFileError, InputError
from offramp.files import TEMPORARY_PREFIX
from offramp.tracing.answers import ANSWERS, ANSWERS_FILE
from offramp.tracing.manifest import MANIFEST, REQUEST, read_manifest
from offramp.tracing.part import FILE_KINDS, part_path, seal_path, trace_file
from offramp.tracing.request import TraceRequest
from offramp.tracing.streamed_states import STATES_FOLDER, remove_states

Content = TypeVar("Content")

_REQUEST_FILE = trace_file(dict[str, Any])  # one of an older version has fewer entries than `TraceRequest`


def refuse_foreign_files(folder: Path) -> None:
    """Make sure that the folder is absent, empty or that of a trace.

    Raises InputError if it holds other files; nothing is written into it.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(
            "the output is a file, not a folder", where=str(folder), fix="choose another with -o"
        )
    if not folder.is_dir() or (folder / REQUEST).exists() or (folder / MANIFEST).exists():
        return
    if any(entry.name != ".lock" and not _is_leftover(entry) for entry in folder.iterdir()):
        raise InputError(
            "the folder holds files that are not a trace",
            where=str(folder),
            fix="choose an empty or a new folder with -o",
        )


def _is_leftover(entry: Path) -> bool:
    """Whether a killed writer left this behind."""
    return entry.name.startswith(TEMPORARY_PREFIX)


def prepare_folder(folder: Path, request: TraceRequest, *, overwrite: bool, repair: bool) -> None:
    """Make the folder ready for this request: empty, or holding whole files of this very request.

    Raises InputError if it holds another trace, saying what differs, unless `overwrite`; DamagedFileError if
    one of its JSON files changed, unless `repair`: the file is then made again.
    """
    refuse_foreign_files(folder)
    found = _found_request(folder, forgive=overwrite or repair)
    if found is not None and found != request.to_json():
        if not overwrite and _holds_work(folder):
            asked = request.to_json()
            differs = [key for key in {**asked, **found} if found.get(key) != asked.get(key)]
            raise InputError(
                "the folder holds another trace (it differs in: " + ", ".join(differs) + ")",
                where=str(folder),
                fix="choose another folder (output=, -o), or give overwrite=True (--overwrite) to replace it",
            )
        _clear(folder)
    _read(folder / MANIFEST, lambda path: read_manifest(path.parent), forgive=repair)
    _read(folder / ANSWERS, ANSWERS_FILE.read, forgive=repair)
    _REQUEST_FILE.write(folder / REQUEST, request.to_json())


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


def _clear(folder: Path) -> None:
    """Delete a trace; the request stays until it is replaced, so that a kill leaves no nameless parts."""
    (folder / MANIFEST).unlink(missing_ok=True)
    for pattern in ("part-*.json", *(f"{kind}-*.parquet" for kind in FILE_KINDS)):
        for path in folder.glob(pattern):
            path.unlink()
    (folder / ANSWERS).unlink(missing_ok=True)
    remove_states(folder)


def remove_part(folder: Path, index: int) -> None:
    """Delete a part and what vouches for it."""
    (folder / MANIFEST).unlink(missing_ok=True)
    seal_path(folder, index).unlink(missing_ok=True)
    for kind in reversed(FILE_KINDS):
        part_path(folder, kind, index).unlink(missing_ok=True)
