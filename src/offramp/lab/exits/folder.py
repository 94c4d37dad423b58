"""The folder of a training: what lies in it, and whose it is."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from offramp.errors import DamagedFileError, DiskFullError, InputError
from offramp.files import TEMPORARY_PREFIX, locked_folder, remove, sweep_temporary_files
from offramp.lab.exits.model_folder import model_files
from offramp.lab.exits.record import REQUEST, REQUEST_FILE, Request, differences, require_same
from offramp.models.memory import shown_size
from offramp.records.sealed_file import SealedFile
from offramp.tracing.answers import ANSWERS
from offramp.tracing.exits_folder import EXITS_FILE, TRAINING_FILE, UNDER_WAY

CHECKPOINT, STATES = UNDER_WAY
OWN = (TRAINING_FILE, EXITS_FILE, STATES, CHECKPOINT, ANSWERS)
"""What the folder of a training holds, beside its request and a trained model."""

OF_SAFETENSORS = ".tmp"
"""How the names of files begin that safetensors writes before it renames them: a kill leaves one behind."""


@contextlib.contextmanager
def claimed(output: Path | None, request: Request, *, overwrite: bool) -> Iterator[Path]:
    """The folder, locked and that of this request; a temporary one if none is named.

    overwrite: replace what is there, but for a training of this very request that has not ended.

    Raises InputError for a folder of something else, or of another training that is not to be replaced.
    """
    if output is None:
        with tempfile.TemporaryDirectory(prefix="offramp-exits-") as name:
            yield Path(name)
        return
    require_own(output)
    with locked_folder(output):
        sweep(output)
        if overwrite and not goes_on(output, lambda: differences(output, request)):
            request_file = output / REQUEST_FILE  # last: without it the rest is nobody's
            for path in (*(output / name for name in OWN), *model_files(output), request_file):
                remove(path)
        if (output / REQUEST_FILE).is_file():
            require_same(output, request)
        REQUEST.write(output / REQUEST_FILE, request)
        yield output


def is_leftover(name: str) -> bool:
    """Whether a writer that was killed left a file of this name."""
    return name.startswith((TEMPORARY_PREFIX, OF_SAFETENSORS))


def sweep(folder: Path) -> None:
    """Remove what killed writers left in a folder that nobody else writes to."""
    sweep_temporary_files(folder)
    for leftover in folder.glob(f"{OF_SAFETENSORS}*"):
        remove(leftover)


def goes_on(folder: Path, differences: Callable[[], Sequence[str]]) -> bool:
    """Whether it holds a training of the same request that was stopped on its way.

    differences: in what the request in the folder is another one. May raise DamagedFileError.
    """
    if (folder / TRAINING_FILE).is_file() or not (folder / REQUEST_FILE).is_file():
        return False
    try:
        return not differences()
    except DamagedFileError:
        return False


def require_own(folder: Path, own: Collection[str] = OWN, request: SealedFile[Any] = REQUEST) -> None:
    """Refuse a folder that holds anything but a training. Raises InputError; nothing is written.

    own: its files, beside a model's. request: as the kind of training has it, without which it is nobody's.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(
            "the output is a file, not a folder", where=str(folder), fix="choose another with -o"
        )
    entries = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    known = {".lock"}
    if REQUEST_FILE in entries and request.is_of(folder / REQUEST_FILE):
        known |= {REQUEST_FILE, *own, *(path.name for path in model_files(folder))}
    others = sorted(name for name in entries - known if not is_leftover(name))
    if others:
        raise InputError(
            f"the output folder holds something else: {', '.join(others[:3])}",
            where=str(folder),
            fix="choose another folder with -o",
        )


def require_room(folder: Path, size: int, what: str, fix: str) -> None:
    """Refuse what the disk has no room for, before anything is written. Raises DiskFullError."""
    existing = next(path for path in (folder, *folder.absolute().parents) if path.is_dir())
    free = shutil.disk_usage(existing).free
    if size > free:
        raise DiskFullError(
            f"{what} take {shown_size(size)}, and {shown_size(free)} are free",
            where=str(folder),
            fix=f"free some space, {fix}, or another folder with -o",
        )
