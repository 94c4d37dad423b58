"""The folder of gates: the exits with them, and the record of their training."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from offramp.errors import InputError
from offramp.files import locked_folder, sweep_temporary_files
from offramp.kit.output_folder import UNKNOWN, OutputFolder
from offramp.lab.exits.gate_record import GATE_RECORD
from offramp.tracing.exits_folder import EXITS_FILE, TRAINING_FILE


@contextlib.contextmanager
def replaced(folder: Path, *, overwrite: bool) -> Iterator[Path]:
    """A folder to write gates in, which takes the place of another when they are whole.

    Raises InputError as `owned_folder`.
    """
    with locked_folder(folder):
        sweep_temporary_files(folder)
        owned_folder(folder, overwrite=overwrite).finish_replacing(TRAINING_FILE)
        with owned_folder(folder, overwrite=overwrite).replaced(TRAINING_FILE) as made:
            yield made


def owned_folder(folder: Path, *, overwrite: bool) -> OutputFolder:
    """The folder, in which nothing lies but gates that are to be overwritten. Raises InputError."""
    if os.path.lexists(folder) and not folder.is_dir():
        raise InputError(
            "the output is a file, not a folder", where=str(folder), fix="choose another with -o"
        )
    ended = GATE_RECORD.is_of(folder / TRAINING_FILE)
    owned = OutputFolder(folder, dict.fromkeys((EXITS_FILE, TRAINING_FILE), UNKNOWN) if ended else {})
    if foreign := (owned.foreign() if ended else owned.entries()):
        raise InputError(
            f"the output holds something else than exits with gates: {', '.join(foreign[:3])}",
            where=str(folder),
            fix="choose another folder with -o",
        )
    if ended and not overwrite:
        raise InputError(
            "the output is there already",
            where=str(folder),
            fix="choose another folder with -o, or give --overwrite",
        )
    return owned
