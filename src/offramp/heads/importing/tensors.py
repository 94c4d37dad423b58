"""Named tensors in safetensors files, read one by one, and every reason to refuse them."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import safe_open
from torch import Tensor

from offramp.errors import InputError
from offramp.files import sha256_of_file
from offramp.heads.exit_heads import useless
from offramp.heads.file import is_pickle
from offramp.models.checkpoint import (
    CONFIG_FILE,
    INDEX_FILE,
    PICKLE_PATTERNS,
    SINGLE_FILE,
    StoredTensor,
    find_weight_files,
    stored_in,
)

FLOATS = ("F64", "F32", "F16", "BF16")
LISTED = 30
"""Lines of a listing at most."""
NUMBER = r"\d{1,15}"
"""Of a layer, in a key: Python reads no number of any length."""


@dataclass(frozen=True)
class Tensors:
    """All tensors of some files, by key. where: what the user named."""

    where: Path
    stored: Mapping[str, StoredTensor]

    @classmethod
    def find(cls, path: Path) -> Tensors:
        """The tensors of a safetensors file, or of a folder with such files; only their headers are read.

        Raises InputError for a file that is absent, a pickle, damaged or no safetensors, and for a key that
        two files have; ModelError for a folder whose index names a file that is absent.
        """
        return cls(path, stored_in(_files(path), path, "name the file that is meant instead of the folder"))

    @property
    def config(self) -> Path:
        """The config.json that belongs to the tensors."""
        return (self.where if self.where.is_dir() else self.where.parent) / CONFIG_FILE

    def require(self, key: str, shape: Sequence[int] | None = None) -> StoredTensor:
        """What is stored under a key; nothing but its header is read.

        Raises InputError, with a listing, for a tensor that is missing, of another shape, or of no
        floating-point numbers.
        """
        stored = self.stored.get(key)
        if stored is None:
            raise self.refused(f"the file has no tensor {key!r}")
        if shape is not None and stored.shape != tuple(shape):
            raise self.refused(f"{key} has the shape {list(stored.shape)}, not {list(shape)}")
        if stored.dtype not in FLOATS:
            raise self.refused(f"{key} is of the type {stored.dtype}; it must be one of {', '.join(FLOATS)}")
        return stored

    def take(self, key: str, shape: Sequence[int]) -> NDArray[np.float32]:
        """A tensor of this shape as float32.

        Raises InputError as `require` does, and for numbers that nothing can be computed with.
        """
        stored = self.require(key, shape)
        with safe_open(stored.file, framework="pt") as file:
            array: NDArray[np.float32] = file.get_tensor(key).float().numpy()
        if why := useless(array):
            raise InputError(
                f"{key} {why}",
                where=str(stored.file),
                fix="the file is damaged or its training failed: use another copy",
            )
        return array

    def first_row(self, key: str) -> Tensor:
        """The first row of a tensor that is there; all of one without dimensions."""
        stored = self.stored[key]
        with safe_open(stored.file, framework="pt") as file:
            row: Tensor = file.get_slice(key)[:1] if stored.shape else file.get_tensor(key)
        return row

    def digests(self, keys: Sequence[str]) -> dict[str, str]:
        """SHA-256 of every file that holds one of these tensors, by name."""
        paths = sorted({self.stored[key].file for key in keys})
        return {path.name: sha256_of_file(path) for path in paths}

    def refused(self, what: str) -> InputError:
        """The error for tensors that do not fit the map, which lists what there is."""
        fix = f"correct the key map (or --format); the tensors are:\n{self.listing()}"
        return InputError(what, where=str(self.where), fix=fix)

    def listing(self) -> str:
        """Every key with its type and shape; keys that differ in a number alone share a line."""
        alike: dict[tuple[str, str, tuple[int, ...]], list[tuple[int, ...]]] = defaultdict(list)
        for key, stored in self.stored.items():
            numbers = tuple(int(number) for number in re.findall(NUMBER, key))
            pattern = re.sub(NUMBER, "{}", key.replace("{", "{{").replace("}", "}}"))
            alike[pattern, stored.dtype, stored.shape].append(numbers)
        lines = [
            f"  {_spelled(pattern, numbers)}: {dtype} {list(shape)}"
            for (pattern, dtype, shape), numbers in sorted(alike.items())
        ]
        rest = [f"  and {len(lines) - LISTED} more"] if len(lines) > LISTED else []
        return "\n".join([*lines[:LISTED], *rest])


def _spelled(pattern: str, numbers: list[tuple[int, ...]]) -> str:
    """The pattern with its numbers filled in: each as it is, or the least and the largest of several."""
    columns = zip(*numbers, strict=True)
    return pattern.format(*(f"{min(c)}..{max(c)}" if len({*c}) > 1 else str(c[0]) for c in columns))


def _files(path: Path) -> list[Path]:
    """The safetensors files that a path means."""
    files = [path]
    if path.is_dir():
        whole = (path / SINGLE_FILE).is_file() or (path / INDEX_FILE).is_file()
        files = find_weight_files(path) if whole else sorted(path.glob("*.safetensors"))
        pickles = sorted(file for pattern in PICKLE_PATTERNS for file in path.glob(pattern))
        if not files and pickles:
            raise _pickle(pickles[0])
        if not files:
            what, fix = "the folder holds no .safetensors file", "name the file with the heads"
            raise InputError(what, where=str(path), fix=fix)
    elif not path.is_file():
        what, fix = "there is no such file or folder", "name the safetensors file with the heads"
        raise InputError(what, where=str(path), fix=fix)
    for file in files:
        with file.open("rb") as opened:
            if is_pickle(opened.read(9)):
                raise _pickle(file)
    return files


def _pickle(path: Path) -> InputError:
    new = f"{path.stem.replace('pytorch_model', 'model')}.safetensors"
    return InputError(
        "the file is a pickle, which can run code when it is read; exit heads are read from safetensors",
        where=str(path),
        fix="convert it once; weights_only lets it run no code:\n"
        'python -c "import torch; from safetensors.torch import save_file; '
        f"state = torch.load('{path.name}', map_location='cpu', weights_only=True); "
        f"save_file({{key: value.contiguous().clone() for key, value in state.items()}}, '{new}', "
        "{'format': 'pt'})\"",
    )
