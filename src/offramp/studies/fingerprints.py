"""What was found out about files, kept beside a study: read again only where the files are others."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from offramp.errors import DamagedFileError
from offramp.files import canonical_json, read_sealed_json, sha256_of_text, write_sealed_json

FILE = "fingerprints.json"
VALUES = "values"

Evidence = list[list[str | int]]
"""Path, size, time of the last change (ns) and inode of some files."""


class Fingerprints:
    """Values by name, each with the evidence that it still holds.

    path: where they are kept; None: in memory only. A file that cannot be read is as good as none.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._kept: dict[str, Any] = {} if path is None else _read(path)
        self._changed = False

    def get(self, name: str, evidence: Callable[[Any], Any], find: Callable[[], Any]) -> Any:
        """The value kept under a name while the evidence for it is the same, else what `find` finds (JSON).

        evidence: of a value, what it was found from (JSON). Raises what `find` and `evidence` raise.
        """
        kept = self._kept.get(name)
        if isinstance(kept, dict) and kept.get("evidence") == _digest(evidence(kept.get("value"))):
            return kept["value"]
        value = find()
        self._kept[name] = {"evidence": _digest(evidence(value)), "value": value}
        self._changed = True
        return value

    def save(self) -> None:
        """Write what was added, in one step. Raises OfframpError if the disk is full."""
        if self._path is not None and self._changed:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_sealed_json(self._path, {VALUES: self._kept})
            self._changed = False


def evidence_of(paths: Iterable[Path]) -> Evidence:
    """What tells that files are those that were read: all files below the folders among the paths, too."""
    found: Evidence = []
    for path in paths:
        files = sorted(path.rglob("*")) if path.is_dir() else [path]
        for file in files:
            if file.is_file():
                facts = file.stat()
                found.append([str(file), facts.st_size, facts.st_mtime_ns, facts.st_ino])
    return found


def _digest(evidence: Any) -> str:
    return sha256_of_text(canonical_json(evidence))


def _read(path: Path) -> dict[str, Any]:
    try:
        return dict(read_sealed_json(path, _damaged)[VALUES])
    except (OSError, DamagedFileError):  # there is none yet, or it changed: all of it can be found out again
        return {}


def _damaged(path: Path, why: str) -> DamagedFileError:
    return DamagedFileError(f"{path.name}: {why}", where=str(path))
