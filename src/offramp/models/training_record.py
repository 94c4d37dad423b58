"""The record that a training leaves beside a model or exits, and what they are held against."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from offramp.errors import DamagedFileError, InputError, ModelError
from offramp.files import SEAL, json_object_in, parse_json, read_json, seal_of, write_sealed_json
from offramp.models.identity import identify_folder

TRAINING_FILE = "training.json"
"""How a model or exits were trained. Written last: without it a training has not ended."""

OTHERS, EXITS, GATES = "lab training", "training", "gate training"
"""Kinds of records: of a model that other code trained; of exits, or of a model that can be left early; of
gates."""
REQUEST_FILE, REQUESTS = "request.json", ("training request", "lab request")
"""What was asked for, and the kinds of it that models come of, the second of `offramp lab train`."""
MODEL_ITSELF = "regularised"
"""The kind of training of EXITS that leaves a model."""


def read_training(folder: Path) -> dict[str, Any] | None:
    """The record in a folder; None where there is none, or another program's.

    Raises DamagedFileError for one that was changed.
    """
    path = folder / TRAINING_FILE
    if not path.exists():
        return None
    try:
        record = read_json(path, object, lenient=True)
        if not isinstance(record, dict):
            return None
        known = record.get("kind") in (OTHERS, EXITS, GATES)
        # A changed one of ours may have lost its kind, or its seal.
        if (known or SEAL in record) and record.get(SEAL) != seal_of(record):
            raise ValueError
    except (OSError, ValueError) as error:
        raise damaged_record(path) from error
    return record if known else None


OWN_ENTRIES = ("documents", "heads", "kind", "model", "request", SEAL, "texts")
"""Of a record, what offramp reads."""


def record_training(folder: str | Path, seen: Mapping[str, Sequence[str]], **about: Any) -> None:
    """Say in a model's folder what it was trained on, for a model that was trained by other code.

    Writes `training.json`, also in the place of one that it wrote before. Traces of the model then know which
    documents of offramp's workloads it saw, tuning leaves them out, and the model is refused when its weights
    are not those of now. seen: ids by a workload's fingerprint, as `offramp.documents_seen` gives them.
    about: whatever else is to be kept, as JSON has it, under other names than OWN_ENTRIES.

    Raises ModelError for a folder without weights; InputError for what JSON cannot hold, and where another
    training, or another program, left the record; DamagedFileError for a record that was changed.
    """
    folder = Path(folder)
    model = identify_folder(folder, source=str(folder)).fingerprint
    path = folder / TRAINING_FILE
    before = read_training(folder)
    if os.path.lexists(path) and (before is None or before["kind"] != OTHERS):
        left = "another program" if before is None else "offramp exits train"
        raise InputError(
            f"the record that {left} left stands where that of this training is written",
            where=str(path),
            fix="record the training of a model in the model's own folder, or move the file away",
        )
    taken = sorted(set(about) & set(OWN_ENTRIES))
    if taken:
        raise InputError(
            f"the entry {taken[0]!r} of a record says something else",
            where=f"{taken[0]}=",
            fix=f"choose another name; taken are {', '.join(OWN_ENTRIES)}",
        )
    documents = {workload: list(ids) for workload, ids in seen.items()}
    record = {"kind": OTHERS, **_as_json(about), "model": model, "documents": documents}
    write_sealed_json(path, record)


def _as_json(about: Mapping[str, Any]) -> dict[str, Any]:
    """What was given, as it is read back. Raises InputError for what JSON cannot hold."""
    from offramp.kit.typed import to_json  # numpy comes with it

    found: dict[str, Any] = {}
    for name, value in about.items():
        try:
            text = json.dumps({name: to_json(value)}, allow_nan=False)
            found |= parse_json(text)
        except (TypeError, ValueError, RecursionError) as error:
            raise InputError(
                f"JSON cannot hold {name}: {error}",
                where=f"{name}=",
                fix="give texts, finite numbers, lists and dicts of these",
            ) from error
    return found


def damaged_record(path: Path) -> DamagedFileError:
    """The error for a record that cannot be believed."""
    return DamagedFileError(
        "the record of what was trained here, and on what, is damaged",
        where=str(path),
        fix="train again, with --overwrite, or copy the whole folder again from where it came",
    )


def require_as_trained(folder: Path, fingerprint: str, *, model: bool) -> None:
    """Refuse a model or exits that are not those which the training left whose record lies beside them.

    fingerprint: of what lies in the folder. model: whether that is a model, or else exits. Where no record of
    such a training lies, nothing is held against anything.

    Raises ModelError for other ones, and for a model whose training was asked for there and has left no
    record; DamagedFileError for a record that was changed.
    """
    record = read_training(folder)
    if record is None:
        if model and _was_requested(folder):
            raise ModelError(
                "the training of this model has not ended, or its record is gone: "
                f"{TRAINING_FILE} is missing",
                where=str(folder),
                fix="run again what trains it (offramp exits train), or copy the whole "
                "folder again from where it came",
            )
        return
    try:
        of_a_model = record["kind"] == OTHERS or (
            record["kind"] == EXITS and record["request"]["recipe"]["kind"] == MODEL_ITSELF
        )
        left = record["model" if record["kind"] == OTHERS else "heads"]
    except (KeyError, TypeError):  # of another layout, which whoever reads the whole record will say
        return
    if of_a_model is model and left != fingerprint:
        raise ModelError(
            f"{'the model is' if model else 'the exits are'} not what the training left: a file was changed, "
            "or comes from elsewhere",
            where=str(folder),
            fix="train again, with --overwrite, or copy the whole folder again from where it came",
        )


def _was_requested(folder: Path) -> bool:
    """Whether a training of offramp's was asked for in a folder."""
    request = json_object_in(folder / REQUEST_FILE, lenient=True)
    return request is not None and request.get("kind") in REQUESTS
