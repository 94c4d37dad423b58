"""`decoding.json` in a run's folder: what was decoded for real, so that a rerun need not time it again."""

from __future__ import annotations

import dataclasses
import sys
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from offramp.cli.run_folder import DECODING_FILE
from offramp.errors import DamagedFileError
from offramp.files import read_sealed_json, write_sealed_json
from offramp.report.run_result import Decoded
from offramp.scoring.finite import finite_json

SCHEMA_VERSION = 3


@dataclass(frozen=True)
class Kept:
    """One run's measurement. key: SHA-256 of everything that it depends on. missing: why, by workload.

    machine: fingerprint of the timings that it was predicted with, None without any.
    """

    key: str
    decoded: tuple[Decoded, ...]
    missing: Mapping[str, str]
    machine: str | None = None


def read_kept(folder: Path) -> Kept | None:
    """What an earlier run measured; None without it, and if it is damaged or of another version."""
    path = folder / DECODING_FILE
    if not path.exists():
        return None
    try:
        value = read_sealed_json(path, _damaged)
    except DamagedFileError as error:
        print(f"offramp: decoded again: {error.what}", file=sys.stderr)
        return None
    if value["schema_version"] != SCHEMA_VERSION:
        return None
    decoded = from_json(tuple[Decoded, ...], value["decoded"])
    return Kept(value["key"], decoded, value["missing"], value["machine"])


def write_kept(folder: Path, kept: Kept) -> None:
    """Write all of it in one step."""
    decoded = [finite_json(dataclasses.asdict(one)) for one in kept.decoded]
    content = {
        "schema_version": SCHEMA_VERSION,
        "key": kept.key,
        "decoded": decoded,
        "machine": kept.machine,
    }
    write_sealed_json(folder / DECODING_FILE, {**content, "missing": dict(kept.missing)})


def _damaged(path: Path, reason: str) -> DamagedFileError:
    return DamagedFileError(
        f"{path.name} is damaged: {reason}", where=str(path), fix="delete it; the same run measures again"
    )


def from_json(kind: Any, value: Any) -> Any:
    """A dataclass, or a tuple or optional of them, from what `dataclasses.asdict` and JSON made of it."""
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        inner = [argument for argument in typing.get_args(kind) if argument is not type(None)]
        return None if value is None else from_json(inner[0], value)
    if origin is tuple:
        return tuple(from_json(typing.get_args(kind)[0], item) for item in value)
    if dataclasses.is_dataclass(kind) and isinstance(kind, type):
        hints = typing.get_type_hints(kind)
        return kind(**{name: from_json(hints[name], part) for name, part in value.items()})
    return value
