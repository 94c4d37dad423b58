"""Trainings in a task's own folder, of which a killed try may have left something."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from offramp.errors import DamagedFileError, InputError
from offramp.files import locked_folder, remove

Trained = TypeVar("Trained")


def gone_on_with(folder: Path, train: Callable[[], Trained]) -> Trained:
    """What training in a folder gives. What an earlier try left there, or in folders beside it whose names
    begin with its own, is gone on with if it is whole and of this training, else it is made anew: all of it
    is the task's alone.

    Raises what `train` raises where nothing was left, and InputError for what another process writes into.
    """
    left_over = [*folder.parent.glob(f"{folder.name}*")]
    try:
        return train()
    except (InputError, DamagedFileError):
        if not left_over:
            raise
        # Refused where it is whole and in the hands of another process.
        with locked_folder(folder) if folder.is_dir() else contextlib.nullcontext():
            for path in left_over:
                remove(path)
        return train()
