"""Which code computed a result: one fingerprint of the source of some of its packages."""

from __future__ import annotations

import functools
from pathlib import Path

from offramp.files import canonical_json, sha256_of_file, sha256_of_text

PACKAGE = Path(__file__).parents[1]


def source_fingerprint(*places: str) -> str:
    """SHA-256 of the source in some packages or files of offramp: "tracing", "scoring/eas.py"."""
    files = {name: digest for place in places for name, digest in _sources(place)}
    return sha256_of_text(canonical_json(sorted(files.items())))


@functools.cache
def _sources(place: str) -> tuple[tuple[str, str], ...]:
    """Name and SHA-256 of every source file of one package or file."""
    path = PACKAGE / place
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return tuple((file.relative_to(PACKAGE).as_posix(), sha256_of_file(file)) for file in files)
