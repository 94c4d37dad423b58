"""Files of tensors that offramp writes for itself: a header and arrays, with the SHA-256 of both.

They are safetensors, with the header in one entry of the metadata: safetensors writes several in no fixed
order, and equal contents give equal bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import DamagedFileError, InputError
from offramp.files import SEAL, JsonError, canonical_json, parse_json, require_regular, write_atomically
from offramp.kit.sealed_file import VERSION

Arrays = dict[str, NDArray[Any]]


class NoTensorsError(ValueError):
    """A file is no safetensors, or lacks the entry of its kind. Its text says why."""


@dataclass(frozen=True)
class SealedTensors:
    """One kind of file.

    entry: of the metadata, which holds the header. what: it is called where it is damaged, with {name} for
    its own. version: the newest that is read, and that which is written; None for a layout without any.
    """

    entry: str
    what: str
    version: int | None = None

    def write(self, path: Path, header: Mapping[str, Any], arrays: Arrays) -> None:
        """Write both in one step (see `offramp.files.write_atomically`). header: as JSON has it."""
        from safetensors.numpy import save_file

        version = {} if self.version is None else {VERSION: self.version}
        metadata = {self.entry: canonical_json({**version, SEAL: seal_of(header, arrays), **header})}
        write_atomically(
            path, lambda temporary: save_file(dict(arrays), temporary, metadata=metadata), apart=True
        )

    def read(self, path: Path, fix: str) -> tuple[dict[str, Any], Arrays]:
        """The header and the arrays that were written. fix: what to do where they are damaged.

        Raises NoTensorsError for what is no file of this kind, DamagedFileError for one whose bytes changed,
        InputError for one of a newer version; OSError for what cannot be read.
        """
        metadata, arrays = read_tensors(path)
        if self.entry not in metadata:
            raise NoTensorsError(f"it holds no {self.entry}")
        try:
            header = parse_json(metadata[self.entry])
        except JsonError as error:
            raise self.damaged(path, f"of its header, {error}", fix) from error
        version, seal = header.pop(VERSION, None) if self.version else None, header.pop(SEAL, None)
        if self.version is not None and type(version) is int and version > self.version:
            raise InputError(
                f"{path.name} has schema version {version}; this offramp reads {self.version}",
                where=str(path),
                fix="update offramp, or make the file again with this version",
            )
        known = self.version is None or (type(version) is int and version >= 1)
        if not known or seal != seal_of(header, arrays):
            raise self.damaged(path, "its bytes changed since it was written (SHA-256 differs)", fix)
        return header, arrays

    def damaged(self, path: Path, why: str, fix: str) -> DamagedFileError:
        """The error for a file that cannot be believed."""
        return DamagedFileError(f"{self.what.format(name=path.name)}: {why}", where=str(path), fix=fix)


def read_tensors(path: Path) -> tuple[dict[str, str], Arrays]:
    """Metadata and arrays of a safetensors file, in memory of their own.

    Raises NoTensorsError for any other file, OSError for what cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    require_regular(path)
    with path.open("rb"):  # safetensors says of one that may not be read that it is not there
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            arrays = {name: np.array(file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
            return dict(file.metadata() or {}), arrays
    except (KeyError, TypeError, AttributeError) as error:  # a type of numbers that numpy lacks
        raise NoTensorsError(f"it holds arrays of the type {error}") from error
    except (SafetensorError, ValueError) as error:
        raise NoTensorsError(f"it is not safetensors, or is damaged: {error}") from error


def seal_of(header: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> str:
    """SHA-256 of a header and of every array's name, type, shape and bytes, in hexadecimal."""
    digest = hashlib.sha256(canonical_json(header).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(canonical_json([name, array.dtype.str, list(array.shape)]).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()
