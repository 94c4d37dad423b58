"""The folders of trainings, of gates and of trained models: what lies in them, and how a model is written."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from offramp.errors import DiskFullError
from offramp.files import no_room, remove, temporary_path
from offramp.heads.file import EXITS_FILE, UNDER_WAY
from offramp.kit.numbers import shown_size
from offramp.kit.output_folder import RECORD_FILE, UNKNOWN, OutputFolder, OwnFiles
from offramp.models.checkpoint import CONFIG_FILE, SINGLE_FILE
from offramp.models.identity import BEHAVIOUR_PATTERNS, TOKENIZER_PATTERNS, identify_folder
from offramp.models.model import Model
from offramp.models.process import quiet_transformers
from offramp.models.training_record import TRAINING_FILE
from offramp.tracing.plan import ANSWERS
from offramp.training.record import GATE_RECORD, REQUEST, REQUEST_FILE

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
        own |= {path.name: UNKNOWN for pattern in PATTERNS for path in folder.glob(pattern)}
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


PATTERNS = (CONFIG_FILE, SINGLE_FILE, "README.md", *BEHAVIOUR_PATTERNS, *TOKENIZER_PATTERNS)
"""What of a folder belongs to a model."""

ONE_FILE = 1 << 60
"""Bytes of a file of weights at most: all in one."""


def write_model(model: Model, values: Mapping[str, Tensor], folder: Path) -> str:
    """Write a model with other weights; its fingerprint. values: by name as the model has them.

    Weights that are tied stay tied, and are stored once. All files are made beside each other and then put in
    their places, the config last: a folder without it is no model. Raises DiskFullError, InputError where a
    file that offramp did not write is in the way.
    """
    made = temporary_path(folder / "model")
    remove(made)
    try:
        with quiet_transformers():
            with _same_config(model.hf):
                model.hf.save_pretrained(made, state_dict=_state(model.hf, values), max_shard_size=ONE_FILE)
            _write_tokenizer(model, made)
        (made / "README.md").write_text(_card(model), encoding="utf-8")
        readable = (made / CONFIG_FILE).stat().st_mode  # by whom other new files are, and weights are not
        for path in made.iterdir():
            if path.stat().st_mode != readable:
                path.chmod(readable)
            with path.open("rb") as file:
                os.fsync(file.fileno())
    except Exception as error:
        written = sum(path.stat().st_size for path in made.glob("*"))  # of nothing if it was never made
        full = no_room(error, folder / SINGLE_FILE, written)
        if full is None:
            raise
        remove(made)
        raise full from error
    fingerprint = identify_folder(made, source=str(folder)).fingerprint
    OwnFiles(folder).take(made, CONFIG_FILE, replaces=())
    return fingerprint


def _state(hf: Any, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """All that is stored of a model, with other weights, tied ones under each of their names."""
    names = {id(weight): name for name, weight in hf.named_parameters()}
    kept = hf.state_dict(keep_vars=True)
    return {name: values.get(names.get(id(weight), ""), weight).detach() for name, weight in kept.items()}


@contextlib.contextmanager
def _same_config(hf: Any) -> Iterator[None]:
    """transformers notes in the model's own config what it writes: afterwards that is as it was."""
    before = dict(vars(hf.config))
    try:
        yield
    finally:
        vars(hf.config).clear()
        vars(hf.config).update(before)


def _write_tokenizer(model: Model, folder: Path) -> None:
    """The files that the model was loaded with, or those of a tokenizer that was given."""
    if model.source is None or not model.source.folder.is_dir():
        model.tokenizer.save_pretrained(folder)
        return
    for pattern in TOKENIZER_PATTERNS:
        for path in model.source.folder.glob(pattern):
            shutil.copyfile(path, folder / path.name)


def _card(model: Model) -> str:
    """Whose model it was, and under which licence, where readers of model folders look for it."""
    licence = model.identity.licence
    front = f"---\nlicense: {licence}\n---\n\n" if licence else ""
    return (
        f"{front}{model.name}, trained on by `offramp exits train --kind regularised` so that it can be left "
        "early. What was done, on which documents, and what became of its output: `training.json`.\n"
    )
