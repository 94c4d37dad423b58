"""The folders of trainings and of gates: what lies in them."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

from offramp.errors import DiskFullError
from offramp.heads.file import EXITS_FILE, TRAINING_FILE, UNDER_WAY
from offramp.kit.numbers import shown_size
from offramp.kit.output_folder import RECORD_FILE, UNKNOWN, OutputFolder
from offramp.tracing.plan import ANSWERS
from offramp.training.gate_record import GATE_RECORD
from offramp.training.model_folder import model_files
from offramp.training.record import REQUEST, REQUEST_FILE

CHECKPOINT, STATES = UNDER_WAY
FIT, HELD_OUT = "fit.safetensors", "held_out.safetensors"
WORKING = (CHECKPOINT, ANSWERS, *(f"{STATES}/{name}" for name in (FIT, HELD_OUT)))
"""What only a training that has not ended has in its folder."""

FINISHED = (TRAINING_FILE, EXITS_FILE, REQUEST_FILE)
"""What one that has ended leaves there, beside a trained model."""


def _own_training(folder: Path) -> dict[str, str | None] | None:
    if not REQUEST.is_of(folder / REQUEST_FILE):
        return None
    own: dict[str, str | None] = {**dict.fromkeys(WORKING), **dict.fromkeys(FINISHED, UNKNOWN)}
    if not (folder / RECORD_FILE).exists():  # an older offramp trained it
        own |= {path.name: UNKNOWN for path in model_files(folder)}
    return own


TRAINING_FOLDER = OutputFolder(
    what="a training",
    own=_own_training,
    done=TRAINING_FILE,
    request=REQUEST,
    request_name=REQUEST_FILE,
    alone=True,
)


def _own_gates(folder: Path) -> dict[str, str | None] | None:
    ended = GATE_RECORD.is_of(folder / TRAINING_FILE)
    return dict.fromkeys((EXITS_FILE, TRAINING_FILE), UNKNOWN) if ended else None


GATES_FOLDER: OutputFolder[None] = OutputFolder(
    what="exits with gates", own=_own_gates, done=TRAINING_FILE, alone=True
)


def clear_working_files(folder: Path) -> None:
    """Remove what a training leaves that has not ended."""
    for name in (CHECKPOINT, ANSWERS):
        (folder / name).unlink(missing_ok=True)
    clear_states(folder / STATES)


def clear_states(folder: Path) -> None:
    """Remove hidden states, and their folder if nothing else lies in it."""
    for name in (FIT, HELD_OUT):
        (folder / name).unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


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
