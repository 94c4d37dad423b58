"""Named tensors in safetensors files, read one by one, and a listing for those who look for others."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from offramp.errors import InputError, refused_as
from offramp.files import sha256_of_file
from offramp.models.checkpoint import PICKLE_PATTERNS, find_weight_files
from offramp.tracing.heads_arrays import useless
from offramp.tracing.heads_file import is_pickle

FLOATS = ("F64", "F32", "F16", "BF16")
LISTED = 30
NUMBER = r"\d{1,15}"
"""Of a layer, in a key: Python reads no number of any length."""
"""Lines of a listing at most."""


@dataclass(frozen=True)
class Stored:
    """One tensor: its file, and its type and shape as its header says."""

    path: Path
    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Tensors:
    """All tensors of some files, by key. where: what the user named."""

    where: Path
    stored: dict[str, Stored]

    @classmethod
    def find(cls, path: Path) -> Tensors:
        """The tensors of a safetensors file, or of a folder with such files; only their headers are read.

        Raises InputError for a file that is absent, a pickle, damaged or no safetensors, and for a key that
        two files have; ModelError for a folder whose index names a file that is absent.
        """
        stored: dict[str, Stored] = {}
        for file in _files(path):
            with _opened(file) as tensors:
                for key in tensors.keys():  # noqa: SIM118 - not a dict
                    if key in stored:
                        raise InputError(
                            f"{stored[key].path.name} and {file.name} both have a tensor {key!r}",
                            where=str(path),
                            fix="name the file that is meant instead of the folder",
                        )
                    part = tensors.get_slice(key)
                    stored[key] = Stored(file, part.get_dtype(), tuple(part.get_shape()))
        return cls(path, stored)

    def require(self, key: str) -> Stored:
        """What is stored under a key. Raises InputError, with a listing, if there is nothing."""
        if key not in self.stored:
            raise self.refused(f"the file has no tensor {key!r}")
        return self.stored[key]

    def take(self, key: str, shape: Sequence[int]) -> NDArray[np.float32]:
        """A tensor of this shape as float32.

        Raises InputError, with a listing, if it is missing, of another shape, no floating-point numbers, or
        if one of its numbers is not finite.
        """
        self.require_shape(key, shape)
        stored = self.stored[key]
        with _opened(stored.path) as tensors:
            array: NDArray[np.float32] = tensors.get_tensor(key).float().numpy()
        if why := useless(array):
            raise InputError(
                f"{key} {why}",
                where=str(stored.path),
                fix="the file is damaged or its training failed: use another copy",
            )
        return array

    def require_shape(self, key: str, shape: Sequence[int]) -> None:
        """Refuse a tensor of another shape, or of no floating-point numbers; nothing but its header is read.

        Raises InputError, with a listing, for this and for one that is missing.
        """
        stored = self.require(key)
        if stored.shape != tuple(shape):
            raise self.refused(f"{key} has the shape {list(stored.shape)}, not {list(shape)}")
        if stored.dtype not in FLOATS:
            raise self.refused(f"{key} is of the type {stored.dtype}; it must be one of {', '.join(FLOATS)}")

    def first_row(self, key: str) -> Any:
        """The first row of a tensor that is there, as torch has it; all of one without dimensions."""
        stored = self.stored[key]
        with _opened(stored.path) as tensors:
            return tensors.get_slice(key)[:1] if stored.shape else tensors.get_tensor(key)

    def digests(self, keys: Sequence[str]) -> dict[str, str]:
        """SHA-256 of every file that holds one of these tensors, by name."""
        paths = sorted({self.stored[key].path for key in keys})
        return {path.name: sha256_of_file(path) for path in paths}

    def refused(self, what: str) -> InputError:
        """The error for tensors that do not fit the map, which lists what there is."""
        return InputError(
            what,
            where=str(self.where),
            fix="correct the key map (or --format); the tensors are:\n" + self.listing(),
        )

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
    if path.is_dir():
        if (path / "model.safetensors").is_file() or (path / "model.safetensors.index.json").is_file():
            return find_weight_files(path)
        found = sorted(path.glob("*.safetensors"))
        if found:
            return found
        pickles = sorted(file for pattern in PICKLE_PATTERNS for file in path.glob(pattern))
        if pickles:
            raise _pickle(pickles[0])
        raise InputError(
            "the folder holds no .safetensors file", where=str(path), fix="name the file with the heads"
        )
    if not path.is_file():
        raise InputError(
            "there is no such file or folder", where=str(path), fix="name the safetensors file with the heads"
        )
    return [path]


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


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, open for reading."""
    from safetensors import SafetensorError, safe_open

    with path.open("rb") as file:
        if is_pickle(file.read(9)):
            raise _pickle(path)
    what, fix = "the file is not safetensors, or is damaged", "copy the file again from where it came"
    with (
        refused_as(InputError, what, SafetensorError, where=str(path), fix=fix),
        safe_open(path, framework="pt") as tensors,
    ):
        yield tensors
