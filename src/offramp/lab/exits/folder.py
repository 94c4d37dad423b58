"""The folder of a training: what lies in it, and whose it is."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from offramp.errors import DamagedFileError, DiskFullError, InputError
from offramp.files import locked_folder, sweep_temporary_files
from offramp.kit.output_folder import RECORD_FILE, UNKNOWN, OutputFolder
from offramp.lab.exits.model_folder import model_files
from offramp.lab.exits.record import REQUEST, REQUEST_FILE, TrainingIdentity, differences, require_same
from offramp.models.memory import shown_size
from offramp.tracing.answers import ANSWERS
from offramp.tracing.exits_folder import EXITS_FILE, TRAINING_FILE, UNDER_WAY

CHECKPOINT, STATES = UNDER_WAY
FIT, HELD_OUT = "fit.safetensors", "held_out.safetensors"
_STATES_FILES = (FIT, HELD_OUT, *(str(Path(name).with_suffix(".partial")) for name in (FIT, HELD_OUT)))
WORKING = (CHECKPOINT, ANSWERS, *(f"{STATES}/{name}" for name in _STATES_FILES))
"""What only a training that has not ended has in its folder."""

FINISHED = (TRAINING_FILE, EXITS_FILE, REQUEST_FILE)
"""What one that has ended leaves there, beside a trained model."""


@contextlib.contextmanager
def claimed(output: Path | None, request: TrainingIdentity, *, overwrite: bool) -> Iterator[Path]:
    """The folder to train in, locked and that of this request; a temporary one if none is named.

    overwrite: replace what is there, but for a training of this very request that has not ended. The new one
    is then made in a folder inside, and takes its place when it is whole.

    Raises InputError for a folder of something else, or of another training that is not to be replaced. A new
    training that is refused inside the block, before it took a step, leaves nothing.
    """
    if output is None:
        with tempfile.TemporaryDirectory(prefix="offramp-exits-") as name:
            yield Path(name)
        return
    require_own(output)
    with locked_folder(output):
        require_own(output)  # as it is now that nobody else writes
        sweep_temporary_files(output)
        owned = owned_folder(output)
        done = owned.finish_replacing(TRAINING_FILE) and is_of(output, request)
        begun = (output / REQUEST_FILE).is_file()
        if overwrite and begun and not done and not goes_on(output, request):
            with owned.replaced(TRAINING_FILE, goes_on=lambda made: is_of(made, request)) as made:
                REQUEST.write(made / REQUEST_FILE, request)
                yield made
            return
        if begun:
            require_same(output, request)
        with owned.writing(REQUEST_FILE):
            REQUEST.write(output / REQUEST_FILE, request)
        ended = (output / TRAINING_FILE).is_file()
        try:
            yield output
        except InputError:  # refused before it trained: the folder is as free as it was
            if not begun and not (output / CHECKPOINT).exists():
                clear_working_files(output)
                owned.remove(REQUEST_FILE)
            raise
        if not ended:
            owned.adopt(TRAINING_FILE, EXITS_FILE)


def clear_working_files(folder: Path) -> None:
    """Remove what a training leaves that has not ended."""
    for name in (CHECKPOINT, ANSWERS):
        (folder / name).unlink(missing_ok=True)
    clear_states(folder / STATES)


def clear_states(folder: Path) -> None:
    """Remove hidden states, and their folder if nothing else lies in it."""
    for name in _STATES_FILES:
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def is_of(folder: Path, request: TrainingIdentity) -> bool:
    """Whether it holds a training of this request."""
    try:
        return (folder / REQUEST_FILE).is_file() and not differences(folder, request)
    except DamagedFileError:
        return False


def goes_on(folder: Path, request: TrainingIdentity) -> bool:
    """Whether it holds a training of this request that was stopped on its way."""
    return not (folder / TRAINING_FILE).is_file() and is_of(folder, request)


def owned_folder(folder: Path) -> OutputFolder:
    """The folder of a training."""
    if not REQUEST.is_of(folder / REQUEST_FILE):
        return OutputFolder(folder)
    also: dict[str, str | None] = {**dict.fromkeys(WORKING), **dict.fromkeys(FINISHED, UNKNOWN)}
    if not (folder / RECORD_FILE).exists():  # an older offramp trained it
        also |= {path.name: UNKNOWN for path in model_files(folder)}
    return OutputFolder(folder, also)


def require_own(folder: Path) -> None:
    """Refuse a folder that holds anything but a training (see `owned_folder`). Raises InputError; nothing is
    written.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(
            "the output is a file, not a folder", where=str(folder), fix="choose another with -o"
        )
    owned = owned_folder(folder)
    others = owned.foreign() if REQUEST.is_of(folder / REQUEST_FILE) else owned.entries()
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
