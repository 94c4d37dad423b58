"""Files of tensors that offramp writes for itself: a header and arrays, with the SHA-256 of both.

They are safetensors, with the header in one entry of the metadata: safetensors writes several in no fixed
order, and equal contents give equal bytes.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic

import numpy as np
from numpy.typing import NDArray

from offramp.errors import DamagedFileError, InputError, shortened
from offramp.files import SEAL, JsonError, canonical_json, open_regular, parse_json, write_atomically
from offramp.kit.sealed_file import VERSION
from offramp.kit.typed import InvalidRecordError, Record, from_json, to_json

Arrays = dict[str, NDArray[Any]]

STREAMED = "rows"
"""The array of a file that is written row by row."""
HEADER_BYTES = 4096
"""Of such a file, before its numbers; safetensors takes a header that is filled up with spaces."""

DECLARED: list[SealedTensors[Any]] = []
"""Every kind of file, in the order of their modules' imports."""


class NoTensorsError(ValueError):
    """A file is no safetensors, or none that is read. Its text says what it is instead."""


@dataclass(frozen=True)
class SealedTensors(Generic[Record]):
    """One kind of file."""

    record: type[Record]
    """The type of its header."""
    entry: str
    """Of the metadata, which holds that."""
    what: str
    """What it is called where it is damaged, with {name} for its own."""
    version: int | None = None
    """The newest that is read, and that which is written; None for a layout without any."""
    contradictions: Callable[[Record, Arrays], Iterable[str]] = lambda header, arrays: ()
    """What of both cannot be true beside the rest of it."""
    unlisted: Callable[[Mapping[str, Any], Collection[str]], Iterable[str]] = lambda header, names: ()
    """Of the names of a file's arrays those that its header says nothing of; none of them is read then."""

    def __post_init__(self) -> None:
        DECLARED.append(self)

    def write(self, path: Path, header: Record, arrays: Arrays) -> None:
        """Write both in one step (see `offramp.files.write_atomically`)."""
        from safetensors.numpy import save_file

        metadata = self._metadata(header, arrays)
        write_atomically(
            path, lambda temporary: save_file(dict(arrays), temporary, metadata=metadata), apart=True
        )

    @contextlib.contextmanager
    def streamed(self, path: Path) -> Iterator[StreamedBytes[Record]]:
        """A file of one array of bytes that is too large for memory, open to be written."""
        with path.open("wb") as file:
            file.write(b" " * HEADER_BYTES)
            yield StreamedBytes(self, path, file)

    def _metadata(self, header: Record, arrays: Mapping[str, NDArray[Any]]) -> dict[str, str]:
        entries, version = to_json(header), {} if self.version is None else {VERSION: self.version}
        return {self.entry: canonical_json({**version, SEAL: seal_of(entries, arrays), **entries})}

    def read(self, path: Path, fix: str, *, mapped: bool = False) -> tuple[Record, Arrays]:
        """The header and the arrays that were written. fix: what to do where they are damaged.

        mapped: leave the arrays in the file; what is written to them is not kept.

        Raises DamagedFileError for what is no file of this kind, or one whose bytes changed, InputError for
        one of a newer version; OSError for what cannot be read.
        """
        header = self._header(path, fix)
        version, seal = header.pop(VERSION, None) if self.version else None, header.pop(SEAL, None)
        if self.version is not None and type(version) is int and version > self.version:
            raise InputError(
                f"{path.name} has schema version {version}; this offramp reads {self.version}",
                where=str(path),
                fix="update offramp, or make the file again with this version",
            )
        try:
            self._require_listed(path, header, fix)
            arrays = read_arrays(path, mapped=mapped)
        except NoTensorsError as error:
            raise self.damaged(path, f"it is {error}", fix) from error
        known = self.version is None or (type(version) is int and version >= 1)
        if not known or seal != seal_of(header, arrays):
            raise self.damaged(path, "its bytes changed since it was written (SHA-256 differs)", fix)
        record = self._typed(path, header, fix)
        for contradiction in self.contradictions(record, arrays):
            raise self.damaged(path, contradiction, fix)
        return record, arrays

    def _require_listed(self, path: Path, header: Mapping[str, Any], fix: str) -> None:
        """Refuse a file with other arrays than its header lists: a hole in a file is of any size."""
        with opened(path) as file:
            names = file.keys()
        try:
            unlisted = list(self.unlisted(header, names))
        except InvalidRecordError as error:
            raise self.foreign(path, error, fix) from error
        if unlisted:
            what = f"the array {shortened(unlisted[0])} belongs to nothing in its header"
            raise self.damaged(path, what, fix)

    def stated(self, path: Path, fix: str) -> Record:
        """The header alone, not held against anything. Raises as `read`, but for changed bytes."""
        return self._typed(path, self._header(path, fix), fix)

    def _header(self, path: Path, fix: str) -> dict[str, Any]:
        try:
            with opened(path) as file:
                header: dict[str, Any] = parse_json((file.metadata() or {})[self.entry])
        except KeyError as error:
            raise self.damaged(path, f"it is without the entry {error}", fix) from error
        except NoTensorsError as error:
            raise self.damaged(path, f"it is {error}", fix) from error
        except JsonError as error:
            raise self.damaged(path, f"of its header, {error}", fix) from error
        return header

    def _typed(self, path: Path, header: Mapping[str, Any], fix: str) -> Record:
        try:
            return from_json(self.record, header)
        except InvalidRecordError as error:  # sealed, but by another program
            raise self.foreign(path, error, fix) from error

    def foreign(self, path: Path, error: Exception, fix: str) -> DamagedFileError:
        """The error for a whole file whose header is not of its record."""
        return self.damaged(path, f"its header is not what offramp writes ({error})", fix)

    def damaged(self, path: Path, why: str, fix: str) -> DamagedFileError:
        """The error for a file that cannot be believed."""
        return DamagedFileError(f"{self.what.format(name=path.name)}: {why}", where=str(path), fix=fix)


class StreamedBytes(Generic[Record]):
    """Appends rows of bytes [rows, ...] to a file of one array, whose header, which counts them, is last."""

    def __init__(self, kind: SealedTensors[Record], path: Path, file: IO[bytes]) -> None:
        self._kind, self._path, self._file = kind, path, file
        self._row: tuple[int, ...] = ()
        self.rows = 0

    def add(self, rows: NDArray[np.uint8]) -> None:
        """Append rows, all of one shape."""
        self._file.write(rows.tobytes())
        self.rows, self._row = self.rows + len(rows), rows.shape[1:]

    def finish(self, header: Record) -> None:
        """Write the header. Nothing is added afterwards."""
        self._file.flush()
        shape = (self.rows, *self._row)
        array = np.memmap(self._path, np.uint8, "r", HEADER_BYTES, shape)
        metadata = self._kind._metadata(header, {STREAMED: array})
        entry = {"dtype": "U8", "shape": shape, "data_offsets": [0, array.nbytes]}
        text = canonical_json({"__metadata__": metadata, STREAMED: entry}).encode()
        room = HEADER_BYTES - 8
        assert len(text) <= room, "a header counts rows and names layers"
        self._file.seek(0)
        self._file.write(room.to_bytes(8, "little") + text.ljust(room))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """A safetensors file, open: its `keys`, `metadata`, and of each array `get_slice` and `get_tensor`.

    Raises NoTensorsError for any other file, OSError for what cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    open_regular(path).close()  # safetensors says of one that may not be read that it is not there
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except SafetensorError as error:
        raise NoTensorsError(f"damaged or truncated, or not safetensors: {error}") from error


def read_arrays(path: Path, *, mapped: bool = False) -> Arrays:
    """The arrays of a safetensors file, in memory of their own, or `mapped`: of bytes alone, in the file.

    Raises as `opened`.
    """
    with opened(path) as file:
        names = file.offset_keys()
        if mapped:
            parts = {name: file.get_slice(name) for name in names}
            if {part.get_dtype() for part in parts.values()} - {"U8"}:
                raise NoTensorsError("of other arrays than bytes")
            return _mapped(path, {name: tuple(part.get_shape()) for name, part in parts.items()})
        try:
            return {name: np.array(file.get_tensor(name)) for name in names}
        except (KeyError, TypeError, AttributeError, ValueError) as error:  # a type that numpy lacks
            raise NoTensorsError(f"of arrays of the type {error}") from error


def _mapped(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> Arrays:
    """Arrays of bytes, by their shapes in the order in which they lie in a file."""
    with open_regular(path) as file:
        place = 8 + int.from_bytes(file.read(8), "little")
    arrays: Arrays = {}
    for name, shape in shapes.items():
        try:
            arrays[name] = np.memmap(path, np.uint8, "c", place, shape)
        except ValueError as error:  # without a byte
            raise NoTensorsError(f"of an array that is empty ({error})") from error
        place += arrays[name].nbytes
    return arrays


def seal_of(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of a header and of every array's name, type, shape and bytes, in hexadecimal."""
    digest = hashlib.sha256(canonical_json(header).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(canonical_json([name, array.dtype.str, list(array.shape)]).encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
