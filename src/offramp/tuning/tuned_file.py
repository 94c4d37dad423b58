"""A tuned policy on disk: everything the tuner said, sealed with its own SHA-256."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

from offramp.errors import InputError
from offramp.files import SEAL, canonical_json, read_given_text, seal_of, write_sealed_json
from offramp.policies.gain import Gain
from offramp.policies.grammar import TUNED_SCHEMA_VERSION
from offramp.scoring.estimate import Estimate
from offramp.tuning.floor import Floor
from offramp.tuning.tuned import HEADS_FILE, Candidate, Certificate, FrontPoint, Shift, Tuned

KIND = "tuned"

ESTIMATES = ("quality", "skip_ratio", "net_speedup", "seconds_per_token")


def to_json(tuned: Tuned) -> dict[str, Any]:
    """The JSON object of a tuned policy, without its seal; "policy" is the policy's text."""
    fields = asdict(tuned)
    text = fields.pop("policy_text")
    # Through JSON once, so that tuples and lists seal alike.
    value: dict[str, Any] = json.loads(
        canonical_json({"schema_version": TUNED_SCHEMA_VERSION, "kind": KIND, "policy": text, **fields})
    )
    return value


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
    return _from_json(value, path.absolute().parent)


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


def _from_json(value: dict[str, Any], folder: Path) -> Tuned:
    """folder: that the policy's file lies in."""
    fields = {key: part for key, part in value.items() if key not in ("schema_version", "kind", SEAL)}
    kept = fields.get("provenance", {}).get(HEADS_FILE)
    if kept is not None:
        fields["provenance"] = {**fields["provenance"], HEADS_FILE: os.path.normpath(folder / kept)}
    fields["policy_text"] = fields.pop("policy")
    fields["floor"] = Floor(**fields["floor"])
    certificate = fields["certificate"]
    if certificate.get("document_tokens") is not None:
        certificate = {**certificate, "document_tokens": tuple(certificate["document_tokens"])}
    fields["certificate"] = Certificate(**certificate)
    fields |= {name: Estimate(**fields[name]) for name in ESTIMATES}
    for name in ("reference_agreement", "executed_agreement"):
        if fields.get(name) is not None:
            fields[name] = Estimate(**fields[name])
    fields["candidates"] = tuple(Candidate(**one) for one in fields.get("candidates", ()))
    if fields.get("gain") is not None:
        fields["gain"] = Gain(**fields["gain"])
    fields["front"] = tuple(FrontPoint(**point) for point in fields["front"])
    fields["shift"] = tuple(
        Shift(**{**shift, "quantiles": tuple(shift["quantiles"])}) for shift in fields["shift"]
    )
    for name in ("document_digests", "document_texts"):
        fields[name] = {role: tuple(values) for role, values in fields.get(name, {}).items()}
    return Tuned(**fields)
