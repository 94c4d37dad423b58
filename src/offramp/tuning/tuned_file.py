"""A tuned policy on disk: everything the tuner said, sealed with its own SHA-256."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from offramp.errors import InputError
from offramp.files import SEAL, read_given_text, seal_of, write_sealed_json
from offramp.policies.grammar import TUNED_SCHEMA_VERSION
from offramp.records.typed import InvalidRecordError, from_json
from offramp.records.typed import to_json as record_json
from offramp.tuning.tuned import HEADS_FILE, Tuned

KIND = "tuned"


def to_json(tuned: Tuned) -> dict[str, Any]:
    """The JSON object of a tuned policy, without its seal; "policy" is the policy's text."""
    fields = record_json(tuned)
    text = fields.pop("policy_text")
    return {"schema_version": TUNED_SCHEMA_VERSION, "kind": KIND, "policy": text, **fields}


def write_tuned(path: Path, tuned: Tuned, heads_file: Path | None = None) -> None:
    """Write a tuned policy with its seal in one step (see `offramp.files.write_atomically`).

    heads_file: where the exit heads lie that it was tuned with, None without any. Kept relative to the policy
    if it lies beside or just above it, so that both can be moved together; their fingerprint is part of
    `Tuned.model`.
    """
    value = to_json(tuned)
    if heads_file is not None:
        value["provenance"][HEADS_FILE] = _place(heads_file.resolve(), path.resolve().parent)
    write_sealed_json(path, value)


def _place(heads: Path, folder: Path) -> str:
    near = heads.parent in (folder, folder.parent)
    return os.path.relpath(heads, folder) if near else str(heads)


def is_tuned_file(path: Path) -> bool:
    """Whether a file calls itself a tuned policy, of whatever version."""
    try:
        return bool(_read_object(path).get("kind") == KIND)
    except InputError:
        return False


def read_tuned(path: str | Path) -> Tuned:
    """The tuned policy that `write_tuned` wrote.

    Raises InputError for a file that is none, that a newer offramp wrote, or that was changed since.
    """
    path = Path(path)
    value = _read_object(path)
    if value.get("kind") != KIND:
        raise InputError(
            "the file holds no tuned policy", where=str(path), fix="give what offramp tune -o wrote"
        )
    version = value.get("schema_version")
    if not isinstance(version, int) or version > TUNED_SCHEMA_VERSION:
        raise InputError(
            f"the tuned policy has schema version {version}; this offramp reads up to {TUNED_SCHEMA_VERSION}",
            where=str(path),
            fix="upgrade offramp: pip install --upgrade offramp",
        )
    if value.get(SEAL) != seal_of(value):
        raise InputError(
            "the tuned policy was edited since it was written (SHA-256 differs)",
            where=str(path),
            fix="run offramp tune again: a certificate holds only for the policy that was tested",
        )
    kept = value.get("provenance", {}).get(HEADS_FILE)
    if kept is not None:
        place = os.path.normpath(path.absolute().parent / kept)
        value["provenance"] = {**value["provenance"], HEADS_FILE: place}
    try:
        return from_json(Tuned, {**value, "policy_text": value.get("policy")})
    except InvalidRecordError as error:  # sealed, but by another program
        raise InputError(
            f"the tuned policy is not what offramp writes: {error}",
            where=str(path),
            fix="run offramp tune again",
        ) from error


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(read_given_text(path))
    except OSError as error:
        raise InputError(
            f"the policy file cannot be read: {error.strerror}", where=str(path), fix="check the path"
        ) from error
    except (ValueError, RecursionError) as error:
        raise InputError(
            "the policy file is no JSON", where=f"{path}: {error}", fix="give what offramp tune -o wrote"
        ) from error
    if not isinstance(value, dict):
        raise InputError(
            "the policy file holds no JSON object", where=str(path), fix="give what offramp tune -o wrote"
        )
    return value
