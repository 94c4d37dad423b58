"""`decoding.json` in a run's folder: what was decoded for real, so that a rerun need not time it again."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from offramp.cli.run_folder import DECODING_FILE
from offramp.errors import DamagedFileError
from offramp.records.sealed_file import SealedFile
from offramp.report.run_result import Decoded


@dataclass(frozen=True)
class Kept:
    """One run's measurement. key: SHA-256 of everything that it depends on. missing: why, by workload.

    machine: fingerprint of the timings that it was predicted with, None without any.
    """

    key: str
    decoded: tuple[Decoded, ...]
    missing: Mapping[str, str]
    machine: str | None = None


FILE = SealedFile(Kept, "{name} is damaged", "delete it; the same run measures again", version=4)


def read_kept(folder: Path) -> Kept | None:
    """What an earlier run measured; None without it, and if it is damaged or of another version."""
    path = folder / DECODING_FILE
    if not path.exists():
        return None
    try:
        return FILE.read(path)
    except DamagedFileError as error:
        print(f"offramp: decoded again: {error.what}", file=sys.stderr)
        return None


def write_kept(folder: Path, kept: Kept) -> None:
    """Write all of it in one step."""
    FILE.write(folder / DECODING_FILE, kept)
