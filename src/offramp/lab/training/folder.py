"""The folder of a training from scratch: what lies in it and beside it, and whose it is."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from offramp.errors import DamagedFileError, InputError
from offramp.files import canonical_json, sha256_of_text
from offramp.lab.exits.folder import owned_folder
from offramp.lab.exits.model_folder import model_files
from offramp.lab.training.record import RECORD, REQUEST, REQUEST_FILE, Request, TrainingRecord
from offramp.records.output_folder import RECORD_FILE, UNKNOWN, OutputFolder
from offramp.records.typed import to_json
from offramp.tracing.exits_folder import TRAINING_FILE, UNDER_WAY

STATE = UNDER_WAY[0]
"""From where a training goes on; there is none in the folder of one that has ended."""


PLACES = {"text", "against", "factor", "base"}
"""What of a recipe says where other things lie, or what it is compared with."""


def kept_model(folder: Path, step: int) -> Path:
    """Where the model after so many steps lies, but for the last: beside the folder, NAME@STEP."""
    return folder.with_name(f"{folder.name}@{step}")


def ended_training(folder: Path, where: str) -> TrainingRecord:
    """The record of a model. where: what names it.

    Raises InputError where no training has ended, DamagedFileError for a record that was changed.
    """
    if not (folder / TRAINING_FILE).is_file():
        raise InputError(
            f"no training has ended there: {TRAINING_FILE} is missing",
            where=f"{where}: {folder}",
            fix="name a recipe, or a model of offramp lab train",
        )
    try:
        return RECORD.read(folder / TRAINING_FILE)
    except DamagedFileError as error:  # whose own advice is about the folder that is written
        fix = "train that model again, with --overwrite, or name another"
        raise DamagedFileError(error.what, where=f"{where}: {error.where}", fix=fix) from error


def key_of(request: Request) -> str:
    """SHA-256 of all that makes a training another one."""
    return sha256_of_text(canonical_json(_flat(request)))


def owned_training(folder: Path) -> OutputFolder:
    """The folder of a training from scratch, or of the model of one of its earlier steps."""
    if (folder / REQUEST_FILE).exists():
        return owned_folder(folder, (STATE,), REQUEST)
    also = {TRAINING_FILE: UNKNOWN} if RECORD.is_of(folder / TRAINING_FILE) else {}
    if also and not (folder / RECORD_FILE).exists():  # an older offramp trained it
        also |= {path.name: UNKNOWN for path in model_files(folder)}
    return OutputFolder(folder, also)


def require_free_beside(folder: Path, steps: Iterable[int]) -> None:
    """Refuse to write the models after these steps over anything else. Raises InputError."""
    for path in (kept_model(folder, step) for step in steps):
        others = owned_training(path).foreign()
        if (path / REQUEST_FILE).exists():
            others.append(f"{REQUEST_FILE}, of a training of its own")
        if others or (os.path.lexists(path) and not path.is_dir()):
            held = ", ".join(others[:3]) or "a file"
            raise InputError(
                f"something else lies where the model of an earlier step is kept: {held}",
                where=str(path),
                fix="move it away, or choose another folder with -o",
            )


def require_same(folder: Path, request: Request) -> None:
    """Refuse the folder of another training. Raises InputError that says in what it is another."""
    different = differences(folder, request) if (folder / REQUEST_FILE).is_file() else []
    if different:
        raise InputError(
            f"the folder holds another training: {', '.join(different[:3])}",
            where=str(folder),
            fix="choose another folder with -o, or give --overwrite",
        )


def is_of(folder: Path, request: Request) -> bool:
    """Whether it holds a training of this request."""
    try:
        return (folder / REQUEST_FILE).is_file() and not differences(folder, request)
    except DamagedFileError:
        return False


def goes_on(folder: Path, request: Request) -> bool:
    """Whether it holds a training of this request that was stopped on its way."""
    return not (folder / TRAINING_FILE).is_file() and is_of(folder, request)


def differences(folder: Path, request: Request) -> list[str]:
    """In what the request in a folder is another one, in words. Raises DamagedFileError."""
    ours, theirs = _flat(request), _flat(REQUEST.read(folder / REQUEST_FILE))
    return [f"{key} ({theirs.get(key)}, now {ours[key]})" for key in ours if ours[key] != theirs.get(key)]


def require_record_of(folder: Path, record: TrainingRecord, request: Request) -> None:
    """Refuse a finished training's record that is of another one than the request beside it, or of a step.

    Raises InputError.
    """
    ours, theirs = (one.recipe.model_dump(exclude=PLACES) for one in (request, record))
    if (theirs, record.text) != (ours, request.text) or not record.stopped:
        raise InputError(
            "the record of the training there is of another training than its folder",
            where=str(folder),
            fix="give --overwrite to train again, or copy the whole folder again from where it came",
        )


def _flat(request: Request) -> dict[str, Any]:
    """All that makes a training another one, by name: not where its text lies or what it is compared with."""
    values = to_json(request)
    recipe = request.recipe.model_dump(exclude=PLACES)
    keys = ("text", "device", "code") if request.base is None else ("text", "device", "code", "base")
    return {**{f"recipe.{key}": value for key, value in recipe.items()}, **values["versions"]} | {
        key: values[key] for key in keys
    }


def put_beside(made: Path, folder: Path) -> None:
    """Put the models of earlier steps that lie beside `made` beside the folder, in the place of its own."""
    new = {path.name.partition("@")[2]: path for path in made.parent.glob(f"{glob.escape(made.name)}@*")}
    for beside in folder.parent.glob(f"{glob.escape(folder.name)}@*"):
        step = beside.name.removeprefix(f"{folder.name}@")
        own_training = (beside / REQUEST_FILE).exists()  # which somebody gave such a name
        if step not in new and not own_training and RECORD.is_of(beside / TRAINING_FILE):
            owned = owned_training(beside)
            owned.remove(*owned.listed())
            owned.leave()
    for step, path in new.items():
        beside = folder.with_name(f"{folder.name}@{step}")
        beside.mkdir(exist_ok=True)
        owned_training(beside).take(path, TRAINING_FILE)
