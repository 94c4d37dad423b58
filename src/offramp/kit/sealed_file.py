"""Files that offramp writes for itself: one record each, as JSON with its own SHA-256."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic

from offramp.errors import DamagedFileError, ForeignFileError, shortened
from offramp.files import (
    LARGEST_JSON,
    SEAL,
    JsonError,
    json_object_in,
    open_regular,
    parse_json,
    read_sealed_json,
    write_sealed_json,
)
from offramp.kit.typed import InvalidRecordError, Record, from_json, to_json

VERSION, KIND = "schema_version", "kind"

DECLARED: list[SealedFile[Any]] = []
"""Every kind of file, in the order of their modules' imports."""


@dataclass(frozen=True)
class SealedFile(Generic[Record]):
    """One kind of file."""

    record: type[Record]
    """The type that it holds."""
    what: str
    """What it is called where it is damaged, with {name} for its own."""
    fix: str
    """What to do about it then."""
    version: int | None = None
    """Of its layout, None for a layout that has none; another version is as good as damaged."""
    kind: str | None = None
    """The word by which it can be told from other kinds, if it has one."""
    apart: Collection[str] = ()
    """Entries that the seal leaves out."""
    under: str = ""
    """The entry that the record is; "" where the record's own entries stand beside the header."""
    contradictions: Callable[[Record], Iterable[str]] = lambda record: ()
    """What of a record cannot be true beside the rest of it."""

    def __post_init__(self) -> None:
        DECLARED.append(self)

    def write(self, path: Path, record: Record) -> None:
        """Write a record in one step (see `offramp.files.write_atomically`); a NaN in it is an error."""
        entries = {self.under: to_json(record)} if self.under else to_json(record)
        write_sealed_json(path, {**self._header(), **entries}, apart=self.apart)

    def read(self, path: Path) -> Record:
        """The record that was written.

        Raises DamagedFileError for other bytes than those, and for a record of another version;
        ForeignFileError, which is one, for a record of another type; FileNotFoundError where there is none.
        """
        try:
            value = read_sealed_json(path, self.damaged, apart=self.apart)
        except DamagedFileError as error:  # one of an older layout may have no seal
            raise self._of_another_layout(path) or error from error
        other = self._of_another_kind(path, value)
        if other is not None:
            raise other
        try:
            record = from_json(self.record, value.get(self.under) if self.under else value)
        except InvalidRecordError as error:  # sealed, but by another program
            raise self.refused(path, error) from error
        for contradiction in self.contradictions(record):
            raise self.damaged(path, contradiction)
        return record

    def refused(self, path: Path, error: ValueError) -> DamagedFileError:
        """The error for a file that has no record (see `kit.typed.read_record`): one that is whole, but holds
        something else, is another program's."""
        if not isinstance(error, InvalidRecordError):
            return self.damaged(path, str(error))
        damaged = self.damaged(path, f"it is not what offramp writes ({error})")
        return ForeignFileError(damaged.what, where=damaged.where, fix=damaged.fix)

    def damaged(self, path: Path, reason: str) -> DamagedFileError:
        """The error for a file that cannot be believed."""
        return DamagedFileError(
            f"{self.what.format(name=path.name)}: {reason}", where=str(path), fix=self.fix
        )

    def is_of(self, path: Path) -> bool:
        """Whether a file says that it is of this kind, damaged or not."""
        value = json_object_in(path)
        return value is not None and self.wrote(value)

    def wrote(self, value: Mapping[str, Any]) -> bool:
        """The same of its content."""
        return value.get(KIND) == self.kind

    def _of_another_layout(self, path: Path) -> DamagedFileError | None:
        """The error for a file that states another version or kind, None for one that is broken."""
        value = json_object_in(path)
        return None if value is None or VERSION not in value else self._of_another_kind(path, value)

    def _of_another_kind(self, path: Path, value: Mapping[str, Any]) -> DamagedFileError | None:
        if self.kind is not None and value.get(KIND) != self.kind:
            return self.damaged(path, f"its kind is {shortened(repr(value.get(KIND)))}, not {self.kind!r}")
        version = value.get(VERSION)
        if self.version is None or (version == self.version and version is not True):
            return None
        if type(version) is not int:
            return self.damaged(path, f"its schema version is {shortened(repr(version))}, not a number")
        return DamagedFileError(
            f"{path.name} is of another version of offramp: its schema version is "
            f"{version}, and this one reads {self.version}",
            where=str(path),
            fix=self.fix,
        )

    def _header(self) -> dict[str, Any]:
        entries = {VERSION: self.version, KIND: self.kind}
        return {name: value for name, value in entries.items() if value is not None}


def is_laid_out(path: Path, names: Collection[str]) -> bool:
    """Whether a file, damaged or not, is laid out as offramp writes a record with these entries: it has most
    of them at its top. So have files of older versions, which have fewer; those of others have not.
    """
    if path.is_symlink() or not path.is_file():
        return False
    with open_regular(path) as file:
        content = file.read(LARGEST_JSON + 1)
    try:
        top: Collection[str] = parse_json(content)
    except JsonError:  # damaged: its lines still say
        top = [name for name in (SEAL, *names) if f'\n "{name}": '.encode() in content]
    return 2 * len({SEAL, *names}.intersection(top)) > 1 + len(names)
